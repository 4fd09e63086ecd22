"""Tables of one or two scored runs: Markdown for people, JSON and CSV for programs."""

import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.evaluation.metrics import CONVENTIONS
from nnssl.evaluation.runs import RunScores
from nnssl.evaluation.statistics import RESAMPLES, Comparison, Interval, bootstrap_interval, compare
from nnssl.paths import atomic_write, save_json

FOREGROUND = "foreground mean"


def summarise(runs: Sequence[RunScores]) -> dict[str, Any]:
    """Everything as JSON values: per run, label and case; with a second run, its paired comparison with the first."""
    summary: dict[str, Any] = {
        "conventions": {
            **CONVENTIONS,
            "interval": f"95 %, percentile bootstrap, {RESAMPLES} resamples of cases taken as independent",
        },
        "runs": [_run_summary(run) for run in runs],
    }
    if len(runs) == 2:
        first, second = runs
        common = sorted(set(first.cases) & set(second.cases))
        summary["comparison"] = {
            "what": f"Dice of {second.name} minus {first.name} on common cases; Wilcoxon signed-rank test, two-sided",
            "cases": len(common),
            "labels": {
                name: dataclasses.asdict(compared) for name, compared in compare_runs(first, second, common).items()
            },
        }
    return _finite(summary)


def compare_runs(first: RunScores, second: RunScores, common: Sequence[str]) -> dict[str, Comparison]:
    """Paired comparison of the Dice of each label, and of the foreground mean, on the common cases."""
    ours, theirs = first.table("dice", common), second.table("dice", common)
    compared = {label: compare(ours[:, i], theirs[:, i]) for i, label in enumerate(first.labels)}
    return {**compared, FOREGROUND: compare(ours, theirs)}


def markdown(runs: Sequence[RunScores]) -> str:
    """A table with a row per label: Dice with its interval and HD95 of each run, and the comparison of two."""
    head = ["label"]
    for run in runs:
        head += [f"Dice {run.name} [95 %]", f"HD95 mm {run.name}, mean / median"]
    columns = [[*runs[0].labels, FOREGROUND]]
    for run in runs:
        columns += [_dice_column(run), _hd95_column(run)]
    if len(runs) == 2:
        head += ["difference [95 %]", "p (Wilcoxon)"]
        common = sorted(set(runs[0].cases) & set(runs[1].cases))
        compared = list(compare_runs(runs[0], runs[1], common).values())
        columns += [
            [_interval(row.difference, "+.3f") for row in compared],
            [_p_value(row.p_value) for row in compared],
        ]
    rows = [head, *map(list, zip(*columns, strict=True))]
    return "\n".join([*_aligned(rows), "", *_notes(runs)])


def csv_rows(runs: Sequence[RunScores]) -> list[list[Any]]:
    """A header and a row per run, case and label; undefined scores are empty, a missing surface is inf."""
    rows: list[list[Any]] = [["run", "case", "label", "dice", "hd95_mm", "reference_ml", "prediction_ml"]]
    for run in runs:
        for case in run.cases:
            for label in run.labels:
                values = dataclasses.astuple(run.scores[case][label])
                rows.append([run.name, case, label, *("" if math.isnan(value) else f"{value:.6g}" for value in values)])
    return rows


def write_report(runs: Sequence[RunScores], output: Path) -> list[Path]:
    """Write evaluation.json, evaluation.csv and evaluation.md into `output`; returns their paths."""
    paths = [output / f"evaluation.{kind}" for kind in ("json", "csv", "md")]
    save_json(summarise(runs), paths[0])
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(csv_rows(runs))
    for path, text in zip(paths[1:], (stream.getvalue(), markdown(runs) + "\n"), strict=True):
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return paths


def _run_summary(run: RunScores) -> dict[str, Any]:
    dice, hd95 = run.table("dice"), run.table("hd95_mm")
    labels = {
        label: {
            "dice": {**dataclasses.asdict(bootstrap_interval(dice[:, i])), "median": _median(dice[:, i])},
            "hd95_mm": _distances(hd95[:, i]),
        }
        for i, label in enumerate(run.labels)
    }
    foreground = {"dice": dataclasses.asdict(bootstrap_interval(dice)), "hd95_mm": _distances(hd95)}
    cases = {
        case: {label: dataclasses.asdict(score) for label, score in run.scores[case].items()} for case in run.cases
    }
    return {
        "name": run.name,
        "labels": labels,
        "foreground_mean": foreground,
        "cases": cases,
        "absent": list(run.absent),
        "problems": list(run.problems),
    }


def _distances(values: np.ndarray) -> dict[str, float | int]:
    """Mean and median of the defined distances, and how many have no surface to measure to (inf)."""
    known = values[np.isfinite(values)]
    return {
        "mean": float(known.mean()) if known.size else float("nan"),
        "median": _median(values),
        "cases": int(known.size),
        "missing": int(np.isinf(values).sum()),
    }


def _median(values: np.ndarray) -> float:
    """Median of the scores that are not NaN; a missing surface counts as infinitely far, so it moves the median."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else float("nan")


def _dice_column(run: RunScores) -> list[str]:
    dice = run.table("dice")
    columns = [dice[:, i] for i in range(len(run.labels))]
    return [_interval(bootstrap_interval(values), ".3f") for values in [*columns, dice]]


def _hd95_column(run: RunScores) -> list[str]:
    hd95 = run.table("hd95_mm")
    cells = []
    for values in [*(hd95[:, i] for i in range(len(run.labels))), hd95]:
        found = _distances(values)
        missing = f" ({found['missing']} missing)" if found["missing"] else ""
        cells.append(f"{found['mean']:.2f} / {found['median']:.2f}{missing}" if values.size else "-")
    return cells


def _interval(interval: Interval, form: str) -> str:
    if interval.cases == 0:
        return "-"
    if interval.cases == 1:
        return f"{interval.mean:{form}} [one case]"
    return f"{interval.mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def _p_value(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _notes(runs: Sequence[RunScores]) -> list[str]:
    notes = [
        f"{run.name}: {len(run.cases)} cases scored, {len(run.absent)} not predicted, {len(run.problems)} problems."
        for run in runs
    ]
    if len(runs) == 2:
        common = len(set(runs[0].cases) & set(runs[1].cases))
        few = " (fewer than 6 cases cannot reach p < 0.05)" if common < 6 else ""
        notes.append(f"difference: {runs[1].name} minus {runs[0].name}, {common} common cases{few}.")
    if any(np.isinf(run.table("hd95_mm")).any() for run in runs):
        notes.append(
            "HD95 missing: the label is in one of the two maps only; left out of the mean, infinite in the median."
        )
    return ["  \n".join(notes)]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table whose columns also line up in a terminal."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _finite(values: Any) -> Any:
    """JSON has no NaN and no infinity: both become null."""
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
