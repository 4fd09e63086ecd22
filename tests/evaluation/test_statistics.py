"""Bootstrap intervals and paired tests against scipy and closed forms."""

import numpy as np
import pytest
from scipy import stats

from nnssl.evaluation.statistics import bootstrap_interval, compare


def scores(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).beta(8, 2, size=shape)


def test_interval_agrees_with_scipy_bootstrap() -> None:
    values = scores(0, 30)
    ours = bootstrap_interval(values)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", random_state=1)
    assert ours.mean == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=2e-3)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=2e-3)


def test_interval_covers_the_true_mean_about_nineteen_times_of_twenty() -> None:
    hits = [found.low <= 0.8 <= found.high for found in (bootstrap_interval(scores(seed, 40)) for seed in range(100))]
    assert 0.88 <= np.mean(hits) <= 0.99


def test_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values = scores(0, 12)
    assert bootstrap_interval(values, 3) == bootstrap_interval(values, 3)
    assert bootstrap_interval(values, 3) != bootstrap_interval(values, 4)


def test_mean_over_labels_is_the_mean_of_label_means() -> None:
    table = np.array([[0.5, np.nan], [0.7, 0.2], [np.nan, np.nan], [0.9, 0.4]])
    found = bootstrap_interval(table)
    assert found.mean == pytest.approx((0.7 + 0.3) / 2)
    assert found.cases == 3


def test_interval_of_a_table_resamples_whole_cases() -> None:
    column = scores(1, 25)
    twice, once = bootstrap_interval(np.stack([column, column], 1)), bootstrap_interval(column)
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high), rel=1e-12)


def test_too_few_cases_have_no_interval() -> None:
    assert bootstrap_interval(np.array([0.5])).mean == 0.5
    assert np.isnan(bootstrap_interval(np.array([0.5])).low)
    assert np.isnan(bootstrap_interval(np.array([np.nan])).mean)
    assert bootstrap_interval(np.array([])).cases == 0


def test_p_value_equals_the_enumerated_sign_distribution() -> None:
    difference = np.array([0.05, 0.02, -0.01, 0.03, 0.04, 0.06])
    ranks = stats.rankdata(np.abs(difference))
    signs = (np.arange(64)[:, None] >> np.arange(6)) & 1
    sums = signs @ ranks
    observed = ranks[difference > 0].sum()
    exact = 2 * min(np.mean(sums >= observed), np.mean(sums <= observed))
    first = scores(0, 6)
    assert compare(first, first + difference).p_value == pytest.approx(exact)


def test_difference_is_second_minus_first_with_its_interval() -> None:
    first = scores(0, 20)
    found = compare(first, first + 0.1)
    assert found.difference.mean == pytest.approx(0.1)
    assert found.difference.low == pytest.approx(0.1)
    assert found.p_value < 1e-4


def test_equal_runs_have_p_one() -> None:
    assert compare(scores(0, 8), scores(0, 8)).p_value == 1.0


def test_cases_scored_in_one_run_only_are_left_out() -> None:
    first, second = np.array([0.5, np.nan, 0.7, np.inf]), np.array([0.6, 0.9, 0.7, 0.1])
    assert compare(first, second).difference.cases == 2
    assert np.isnan(compare(first * np.nan, second).p_value)
