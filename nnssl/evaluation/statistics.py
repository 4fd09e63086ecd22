"""Uncertainty of a mean score and of the difference of two runs: bootstrap over cases, and Wilcoxon's test."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % percentile-bootstrap interval over `cases` cases; NaN ends below two cases."""

    mean: float
    low: float
    high: float
    cases: int


@dataclass(frozen=True)
class Comparison:
    """Second run minus first run on common cases: the mean difference and Wilcoxon's two-sided p value."""

    difference: Interval
    p_value: float


def bootstrap_interval(scores: np.ndarray, seed: int = 0, *, level: float = 0.95) -> Interval:
    """Mean of scores with a percentile-bootstrap interval; cases are resampled, 10,000 times.

    Args:
        scores: (cases,), or (cases, labels): then the mean of the label means, as nnU-Net's foreground_mean, where
            whole cases are resampled. NaN entries are left out.
        level: coverage in (0, 1).
    """
    table = _table(scores)
    cases = len(table)
    if cases == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    mean = _weighted_means(table, np.ones((1, cases)))[0]
    if cases == 1:
        return Interval(float(mean), float("nan"), float("nan"), 1)
    means = _weighted_means(table, _resamples(cases, seed))
    tail = 50 * (1 - level)
    low, high = np.percentile(means[~np.isnan(means)], [tail, 100 - tail])
    return Interval(float(mean), float(low), float(high), cases)


def compare(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Comparison:
    """Paired comparison of two runs; row i of both is the same case. Entries not finite in both are left out.

    Args:
        first, second: (cases,) or (cases, labels) scores; with labels, Wilcoxon's test takes the mean over the labels
            of each case.
    """
    difference = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    difference[~np.isfinite(difference)] = np.nan
    table = _table(difference)
    if len(table) == 0:
        return Comparison(bootstrap_interval(table, seed), float("nan"))
    return Comparison(bootstrap_interval(table, seed), _wilcoxon(np.nanmean(table, axis=1)))


def _wilcoxon(difference: np.ndarray) -> float:
    """Two-sided p value of the signed-rank test; zero differences are dropped, none left gives 1."""
    difference = difference[np.abs(difference) > 1e-12]
    return float(stats.wilcoxon(difference).pvalue) if len(difference) else 1.0


def _table(scores: np.ndarray) -> np.ndarray:
    """(cases, labels) without cases that have no score at all."""
    table = np.asarray(scores, dtype=float)
    table = table[:, None] if table.ndim == 1 else table
    return table[~np.isnan(table).all(axis=1)]


def _resamples(cases: int, seed: int) -> np.ndarray:
    """(resamples, cases): how often each case occurs when as many are drawn with replacement."""
    drawn = np.random.default_rng(seed).integers(0, cases, size=(RESAMPLES, cases))
    drawn += np.arange(RESAMPLES)[:, None] * cases
    return np.bincount(drawn.ravel(), minlength=RESAMPLES * cases).reshape(RESAMPLES, cases).astype(float)


def _weighted_means(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over labels of the weighted mean over cases, for each row of `weights` (resamples, cases)."""
    known = ~np.isnan(table)
    sums = weights @ np.where(known, table, 0.0)
    counts = (weights @ known.astype(float)).astype(float)
    means = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    known_means = ~np.isnan(means)
    total = known_means.sum(axis=1)
    return np.divide(
        np.where(known_means, means, 0.0).sum(axis=1), total, out=np.full(len(means), np.nan), where=total > 0
    )
