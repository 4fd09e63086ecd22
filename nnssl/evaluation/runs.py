"""Score one run: a folder of predicted label maps against a folder of reference label maps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.dataset_conversion.scan_check import map_parallel
from nnssl.evaluation.metrics import LabelScore, evaluated_labels, score_case


@dataclass(frozen=True)
class RunScores:
    """Scores[case][label] of one run, cases without a prediction, and a line for each that could not be scored."""

    name: str
    labels: tuple[str, ...]
    scores: Mapping[str, Mapping[str, LabelScore]]
    absent: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def cases(self) -> list[str]:
        """Scored cases, sorted."""
        return sorted(self.scores)

    def table(self, field: str, cases: Sequence[str] | None = None) -> np.ndarray:
        """(cases, labels) of one field of LabelScore, for the given cases or all."""
        chosen = self.cases if cases is None else cases
        rows = [[getattr(self.scores[case][label], field) for label in self.labels] for case in chosen]
        return np.array(rows, dtype=float).reshape(len(chosen), len(self.labels))

    def case_means(self) -> dict[str, float]:
        """Mean Dice over the labels of each case that has any; cases without a score are left out."""
        means = {}
        for case, row in zip(self.cases, self.table("dice"), strict=True):
            known = row[~np.isnan(row)]
            if len(known):
                means[case] = float(known.mean())
        return means


def score_run(
    name: str, reference: Path, prediction: Path, *, dataset_json: Mapping[str, Any], workers: int = 2
) -> RunScores:
    """Score every case of `reference` that `prediction` holds; unreadable and misplaced ones become problems.

    Raises:
        FileNotFoundError: a folder is absent, or holds no label map.
    """
    ending = dataset_json["file_ending"]
    expected, found = label_maps(reference, ending), label_maps(prediction, ending)
    problems = [f"{name}/{case + ending}: no reference for this prediction" for case in found - expected]
    labels, ignore = evaluated_labels(dataset_json), dataset_json["labels"].get("ignore")
    if not labels:
        raise ValueError(
            f"evaluating {prediction}: dataset.json declares no label but the background; nothing to score"
        )
    cases = sorted(expected & found)
    work = [(reference / (case + ending), prediction / (case + ending), labels, ignore) for case in cases]
    results = map_parallel(_score_or_problem, work, workers=workers, title=f"score {name}")
    scores = {case: result for case, result in zip(cases, results, strict=True) if not isinstance(result, str)}
    # The report is passed on, so that its lines name folders without their absolute paths.
    shorter = {f"{prediction}/": f"{name}/", f"{reference}/": f"{reference.resolve().name}/"}
    for problem in (result for result in results if isinstance(result, str)):
        for path, short in shorter.items():
            problem = problem.replace(path, short)
        problems.append(problem)
    return RunScores(name, tuple(labels), scores, tuple(sorted(expected - found)), tuple(sorted(problems)))


def label_maps(folder: Path, ending: str) -> set[str]:
    """Case names of the label maps in a folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"label maps {folder}: no such folder; give the folder that holds CASE{ending}")
    names = {
        path.name.removesuffix(ending)
        for path in folder.iterdir()
        if path.name.endswith(ending) and not path.name.startswith(".")
    }
    if not names:
        raise FileNotFoundError(f"label maps {folder}: no file CASE{ending} in it; give the folder that holds them")
    return names


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """A short name for each folder: its own, with parents where own names are equal."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"the same folder {folders[0]} was given twice; give two different runs to compare")


def _score_or_problem(
    reference: Path, prediction: Path, labels: Mapping[str, tuple[int, ...]], ignore: int | None
) -> dict[str, LabelScore] | str:
    try:
        return score_case(reference, prediction, labels, ignore)
    except (ValueError, OSError) as error:
        return str(error)
