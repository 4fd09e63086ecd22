"""Paired Dice difference of two settings over the same held-out cases and several seeds, from nnU-Net's summary.json.

Usage: paired_dice.py FOLDER PATTERN FIRST SECOND, where PATTERN names a run by {width} and {seed}
"""

import json
import sys
from pathlib import Path

import numpy as np

from nnssl.evaluation.statistics import bootstrap_interval, compare

SEEDS = (0, 1, 2)


def scores(summary: Path) -> tuple[list[str], np.ndarray]:
    """Names of the cases and their Dice (cases, labels); NaN where a label is in neither map."""
    rows = json.loads(summary.read_text(encoding="utf-8"))["metric_per_case"]
    rows.sort(key=lambda row: row["reference_file"])
    names = [Path(row["reference_file"]).name for row in rows]
    labels = [key for key in rows[0]["metrics"] if key != "0"]
    return names, np.array([[row["metrics"][label]["Dice"] for label in labels] for row in rows], dtype=float)


def main() -> int:
    """One line per setting and seed, then the difference with the seeds averaged per case."""
    folder, pattern, *settings = sys.argv[1:]
    tables: dict[str, list[np.ndarray]] = {setting: [] for setting in settings}
    cases: list[str] = []
    for setting in settings:
        for seed in SEEDS:
            run = Path(folder) / pattern.format(width=setting, seed=seed)
            names, table = scores(run / "fold_0" / "validation" / "summary.json")
            if cases and names != cases:
                raise SystemExit(f"{run} has other cases than the runs before")
            cases = names
            tables[setting].append(table)
            print(f"{setting} seed {seed}: mean Dice {bootstrap_interval(table).mean:.4f} over {len(table)} cases")
    first, second = (np.nanmean(tables[setting], axis=0) for setting in settings)
    for setting, table in zip(settings, (first, second), strict=True):
        found = bootstrap_interval(table)
        print(
            f"{setting}: {found.mean:.4f} [{found.low:.4f}, {found.high:.4f}]; labels {np.nanmean(table, 0).round(3)}"
        )
    found, p = compare(second, first).difference, compare(second, first).p_value
    print(
        f"{settings[0]} minus {settings[1]}: {found.mean:+.4f}, 95 % interval [{found.low:+.4f}, {found.high:+.4f}], "
        f"Wilcoxon p {p:.3g}, {found.cases} cases, seeds averaged per case"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
