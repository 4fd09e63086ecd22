"""`nnssl_evaluate`: Dice and HD95 of predictions in native space, with intervals, a second run, and pictures."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnssl.commands import command_line
from nnssl.dataset_conversion.raw_dataset import dataset_json_problems
from nnssl.evaluation.pictures import images_beside, write_overlays
from nnssl.evaluation.report import markdown, write_report
from nnssl.evaluation.runs import RunScores, distinct_names, score_run
from nnssl.paths import load_json

EXAMPLES = """  nnssl_evaluate -ref $nnUNet_raw/Dataset004_Hippocampus/labelsTr -pred PREDICTIONS
  nnssl_evaluate -ref LABELS -pred FROZEN_PRETRAINED -pred2 FROZEN_RANDOM -images IMAGES -o EVALUATION
  nnssl_evaluate -ref LABELS -pred fold_0/validation --chill      only the cases that were predicted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Console script."""
    parser = command_line.parser("nnssl_evaluate", __doc__ or "", EXAMPLES)
    parser.add_argument("-ref", required=True, metavar="FOLDER", help="[REQUIRED] reference label maps (labelsTr)")
    parser.add_argument("-pred", required=True, metavar="FOLDER", help="[REQUIRED] predicted label maps")
    parser.add_argument(
        "-pred2", "-against", metavar="FOLDER", help="[OPTIONAL] a second run, compared with the first case by case"
    )
    parser.add_argument("-djfile", metavar="FILE", help="[OPTIONAL] dataset.json; default: found beside the folders")
    parser.add_argument("-o", metavar="FOLDER", help="[OPTIONAL] output folder; default: PRED/evaluation")
    parser.add_argument(
        "-images", metavar="FOLDER", help="[OPTIONAL] scans for the pictures; default: imagesTr beside labelsTr"
    )
    parser.add_argument("-np", type=int, default=_workers(), help=f"[OPTIONAL] worker processes; default {_workers()}")
    parser.add_argument("--chill", action="store_true", help="[OPTIONAL] absent predictions are not a problem")
    return command_line.run(_work, parser, argv)


def _work(arguments: argparse.Namespace) -> int:
    if arguments.np < 1:
        raise ValueError(f"-np {arguments.np}: give the number of worker processes, 1 or more")
    reference = Path(arguments.ref)
    predictions = [Path(folder) for folder in (arguments.pred, arguments.pred2) if folder]
    dataset_json = find_dataset_json(arguments.djfile, [reference, *predictions])
    output = Path(arguments.o) if arguments.o else predictions[0] / "evaluation"
    runs = [
        score_run(name, reference, folder, dataset_json=dataset_json, workers=arguments.np)
        for name, folder in zip(distinct_names(predictions), predictions, strict=True)
    ]
    if not any(run.cases for run in runs):
        raise ValueError(
            f"no case could be scored: {[*runs[0].problems, 'no prediction has the name of a reference'][0]}"
        )
    files = write_report(runs, output)
    images = Path(arguments.images) if arguments.images else images_beside(reference)
    pictures, notes = _pictures(runs, predictions, images=images, reference=reference,
                                ending=dataset_json["file_ending"], output=output)  # fmt: skip
    print(markdown(runs))
    print("\nfiles:\n" + "\n".join(f"  {path}" for path in [*files, *pictures]))
    return _list_problems(runs, notes, chill=arguments.chill)


def find_dataset_json(given: str | None, folders: Sequence[Path]) -> dict[str, Any]:
    """The dataset.json that was given, or the first one in or beside the folders.

    Raises:
        FileNotFoundError, ValueError: none found, or not a valid one.
    """
    places = [Path(given)] if given else [place / "dataset.json" for f in folders for place in (f, f.resolve().parent)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"dataset.json: not found as {', '.join(map(str, places))}; give it with -djfile FILE")
    values = load_json(path)
    problems = dataset_json_problems(values) if isinstance(values, dict) else ["expected a JSON object"]
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}")
    return values


def _pictures(
    runs: Sequence[RunScores],
    predictions: Sequence[Path],
    *,
    images: Path | None,
    reference: Path,
    ending: str,
    output: Path,
) -> tuple[list[Path], list[str]]:
    if images is None:
        return [], ["no pictures: no image folder beside the reference; give it with -images FOLDER"]
    return write_overlays(runs, predictions, images=images, reference=reference, ending=ending, output=output)


def _list_problems(runs: Sequence[RunScores], notes: Sequence[str], *, chill: bool) -> int:
    """Print what was left out; 1 where a case could not be scored, else 0."""
    problems = [] if chill else [f"{run.name}: no prediction for {case}" for run in runs for case in run.absent]
    problems += [problem for run in runs for problem in run.problems]
    print("".join(f"\n{note}" for note in notes), end="\n" if notes else "")
    if problems:
        print(f"\n{len(problems)} problem(s):\n" + "\n".join(f"  {problem}" for problem in problems))
    return 1 if problems else 0


def _workers() -> int:
    return min(8, os.cpu_count() or 1)
