"""From a folder of scans to label maps: which cases are there, which are sound, and predicting them one by one."""

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnssl.dataset_conversion.raw_dataset import Case, check_case
from nnssl.inference.output_folder import begin, check_output, finish, pending
from nnssl.inference.predictor import NnsslPredictor
from nnssl.paths import save_json


def input_cases(folder: Path, dataset_json: Mapping[str, Any]) -> list[Case]:
    """Cases of a folder of CASE_0000 files, sorted; a case that lacks a channel is found by `check_case`."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"-i {folder}: no such folder; give a folder of scans named CASE_0000{_ending(dataset_json)}"
        )
    ending = _ending(dataset_json)
    pattern = re.compile(rf"(.+)_\d{{4}}{re.escape(ending)}")
    matches = [pattern.fullmatch(path.name) for path in folder.iterdir() if path.is_file()]
    names = sorted({match.group(1) for match in matches if match})
    if not names:
        raise FileNotFoundError(
            f"-i {folder}: no scan CASE_0000{ending} was found; the model was trained on {ending} files, "
            "one per channel with four digits at the end of the name"
        )
    channels = len(dataset_json["channel_names"])
    return [Case(name, tuple(folder / f"{name}_{n:04d}{ending}" for n in range(channels)), None) for name in names]


def sound_cases(cases: Sequence[Case], dataset_json: Mapping[str, Any]) -> tuple[list[Case], list[str]]:
    """(cases that can be predicted, one line per problem of the others)."""
    problems = {
        case.identifier: check_case(case, dataset_json) for case in tqdm(cases, desc="check", disable=len(cases) < 2)
    }
    sound = [case for case in cases if not problems[case.identifier]]
    return sound, [line for lines in problems.values() for line in lines]


def predict_cases(
    predictor: NnsslPredictor,
    cases: Sequence[Case],
    output: Path,
    *,
    probabilities: bool = False,
    workers: tuple[int, int] = (0, 0),
) -> list[str]:
    """Predict into `output`; one case that fails does not stop the others.

    A label map of an earlier run stays until the new one replaces it; a case that fails is left without one.

    Args:
        probabilities: also save CASE.npz with the class probabilities.
        workers: processes for preprocessing and for export; (0, 0): everything in this process.

    Returns:
        One line per case that failed.

    Raises:
        ValueError: `output` holds label maps of these cases that are no predictions.
    """
    ending = _ending(predictor.dataset_json)
    check_output(output, cases, ending)
    partial = begin(cases, output, ending)
    save_json(predictor.plans_manager.plans, output / "plans.json")
    save_json(predictor.dataset_json, output / "dataset.json")
    if min(workers) > 0 and cases:
        _predict_in_workers(predictor, cases, partial, probabilities=probabilities, workers=workers)
    failures = []
    for case in pending(cases, output):
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net counts its one case in four lines
                predictor.predict_from_files_sequential(*_as_lists([case], partial), save_probabilities=probabilities)
        except Exception as error:
            failures.append(f"case {case.identifier}: prediction failed: {_reason(error)}")
    finish(cases, output, ending)
    return failures


def _predict_in_workers(
    predictor: NnsslPredictor, cases: Sequence[Case], output: Path, *, probabilities: bool, workers: tuple[int, int]
) -> None:
    """nnU-Net's parallel road; when a worker dies or fails, what is missing is left to the sequential road."""
    try:
        predictor.predict_from_files(
            *_as_lists(cases, output),
            save_probabilities=probabilities,
            num_processes_preprocessing=workers[0],
            num_processes_segmentation_export=workers[1],
        )
    except Exception as error:  # of one case: the pool ends with it, the other cases do not
        print(f"a worker process failed ({_reason(error)}); going on case by case")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _as_lists(cases: Sequence[Case], output: Path) -> tuple[list[list[str]], list[str]]:
    return [list(map(str, case.images)) for case in cases], [str(output / case.identifier) for case in cases]


def _ending(dataset_json: Mapping[str, Any]) -> str:
    return dataset_json["file_ending"]
