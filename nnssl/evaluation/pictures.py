"""Which cases to look at (best, median and worst), and their overlay pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK

from nnssl.dataset_conversion.scan_check import geometry_difference, read_scan
from nnssl.evaluation.runs import RunScores
from nnssl.visualization.overlays import Overlay, save_overlay


def telling_cases(means: Mapping[str, float]) -> dict[str, str]:
    """{"best": case, "median": case, "worst": case} of a mean Dice per case; fewer where there are fewer cases."""
    order = sorted(means, key=lambda case: (-means[case], case))
    if not order:
        return {}
    chosen = {"best": order[0], "median": order[(len(order) - 1) // 2], "worst": order[-1]}
    return {rank: case for i, (rank, case) in enumerate(chosen.items()) if case not in list(chosen.values())[:i]}


def images_beside(reference: Path) -> Path | None:
    """The image folder that belongs to a label folder: labelsTr -> imagesTr; None where there is none."""
    name = reference.resolve().name
    guess = reference.resolve().with_name(name.replace("labels", "images"))
    return guess if guess.name != name and guess.is_dir() else None


def write_overlays(
    runs: Sequence[RunScores],
    predictions: Sequence[Path],
    *,
    images: Path,
    reference: Path,
    ending: str,
    output: Path,
) -> tuple[list[Path], list[str]]:
    """Overlay PNGs of the first run's best, median and worst case, a row per run that holds the case.

    Returns:
        Paths of the pictures, and a line for each that could not be drawn.
    """
    written, problems = [], []
    for rank, case in telling_cases(runs[0].case_means()).items():
        path = output / f"overlay_{rank}_{case}.png"
        try:
            _draw(path, case, runs, [folder / (case + ending) for folder in predictions],
                  image=images / f"{case}_0000{ending}", reference=reference / (case + ending), rank=rank)  # fmt: skip
            written.append(path)
        except (ValueError, FileNotFoundError) as error:
            problems.append(f"overlay of {case}: {error}")
    return written, problems


def _draw(
    path: Path,
    case: str,
    runs: Sequence[RunScores],
    predictions: Sequence[Path],
    *,
    image: Path,
    reference: Path,
    rank: str,
) -> None:
    scan, true = read_scan(image), read_scan(reference)
    difference = geometry_difference(scan, true)
    if difference:
        raise ValueError(f"{image}: {difference} of the reference label map")
    rows = [
        Overlay(f"{rank}: {case}   {run.name}", _lps(read_scan(file)), caption(run, case))
        for run, file in zip(runs, predictions, strict=True)
        if case in run.scores
    ]
    spacing = SimpleITK.DICOMOrient(scan, "LPS").GetSpacing()
    save_overlay(path, _lps(scan), _lps(true), spacing_mm=spacing, rows=rows)


def caption(run: RunScores, case: str) -> str:
    """Dice of each label in words, "Dice 0.87: Anterior 0.88, Posterior 0.86"; long lists are cut."""
    scores = run.scores[case]
    parts = [f"{label} {'-' if np.isnan(score.dice) else f'{score.dice:.2f}'}" for label, score in scores.items()]
    shown = ", ".join(parts[:6]) + (", ..." if len(parts) > 6 else "")
    mean = run.case_means().get(case)
    return f"Dice {'-' if mean is None else f'{mean:.3f}'}: {shown}"


def _lps(scan: SimpleITK.Image) -> Any:
    """(X, Y, Z) voxels, axes growing to patient Left, Posterior, Superior."""
    return SimpleITK.GetArrayFromImage(SimpleITK.DICOMOrient(scan, "LPS")).transpose(2, 1, 0)
