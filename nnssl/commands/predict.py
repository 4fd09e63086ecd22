"""nnssl_predict: label maps of a folder of scans from a trained model, sliding window, several folds averaged."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from nnssl.commands import command_line
from nnssl.paths import dataset_name, results_folder

EXAMPLES = """\
  nnssl_predict -i imagesTs -o predictions -d 4 -c 3d_fullres -p nnsslPlans_vit_tiny_8 -run pretrained -f 0
  nnssl_predict -i imagesTs -o predictions -m FrozenEncoderTrainer__nnsslPlans_vit_tiny_8__3d_fullres --disable_tta"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    return command_line.run(work, build_parser(), argv)


def build_parser() -> argparse.ArgumentParser:
    """The command's words; nnU-Net's where nnU-Net has them."""
    command = command_line.parser("nnssl_predict", __doc__ or "", EXAMPLES)
    command.add_argument("-i", type=Path, required=True, metavar="FOLDER", help="scans named CASE_0000.nii.gz")
    command.add_argument("-o", type=Path, required=True, metavar="FOLDER", help="where the label maps go")
    command.add_argument("-d", metavar="DATASET", help="data set number or name of the model")
    command.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION", help="[OPTIONAL] default: 3d_fullres")
    command.add_argument("-p", metavar="PLANS", help="plans name of the model, for example nnsslPlans_vit_tiny_8")
    command.add_argument("-run", metavar="NAME", help="[OPTIONAL] name of the run given to nnssl_train")
    command.add_argument("-tr", default="FrozenEncoderTrainer", help="[OPTIONAL] trainer class")
    command.add_argument("-m", type=Path, metavar="MODEL_FOLDER", help="model folder, instead of -d -c -p -run -tr")
    command.add_argument("-f", nargs="+", metavar="FOLD", help="[OPTIONAL] folds to average; default: all trained ones")
    command.add_argument("-chk", default="checkpoint_final.pth", help="[OPTIONAL] default: checkpoint_final.pth")
    command.add_argument(
        "-step_size",
        type=float,
        metavar="SHARE",
        help="[OPTIONAL] step between crops as a share of their side; default: the model's recipe, else 0.5",
    )
    command.add_argument("--disable_tta", action="store_true", help="no mirroring: up to 8 times faster")
    command.add_argument("--save_probabilities", action="store_true", help="save CASE.npz beside each label map")
    command.add_argument("--continue_prediction", action="store_true", help="leave out cases already predicted")
    command.add_argument("-npp", type=int, help="[OPTIONAL] preprocessing processes; default 2 on a GPU, else 0")
    command.add_argument("-nps", type=int, help="[OPTIONAL] export processes; default 2 on a GPU, else 0")
    command_line.add_device(command)
    return command


def work(arguments: argparse.Namespace) -> int:
    """Check the scans, predict the sound ones, list the others."""
    os.environ.setdefault("nnUNet_def_n_proc", str(min(8, os.cpu_count() or 1)))  # read when nnunetv2 is imported
    from nnssl.inference.cases import input_cases, predict_cases, sound_cases
    from nnssl.inference.output_folder import check_output, unpredicted
    from nnssl.inference.predictor import NnsslPredictor, read_model_folder

    device = command_line.device(arguments)
    model = _model_folder(arguments)
    _, dataset_json = read_model_folder(model)
    cases = input_cases(arguments.i, dataset_json)
    check_output(arguments.o, cases, dataset_json["file_ending"])
    predictor = NnsslPredictor(device, step_size=arguments.step_size, mirroring=not arguments.disable_tta)
    predictor.initialize_from_trained_model_folder(str(model), _folds(arguments.f), arguments.chk)
    if arguments.continue_prediction:
        cases = unpredicted(cases, arguments.o, dataset_json["file_ending"], arguments.save_probabilities)
    _hint(predictor.allowed_mirroring_axes, arguments, device.type)
    sound, problems = sound_cases(cases, dataset_json)
    default = 2 if device.type == "cuda" else 0
    workers = tuple(default if given is None else given for given in (arguments.npp, arguments.nps))
    failures = predict_cases(
        predictor, sound, arguments.o, probabilities=arguments.save_probabilities, workers=(workers[0], workers[1])
    )
    print(f"{len(sound) - len(failures)} of {len(cases)} cases predicted, label maps in {arguments.o}")
    problems += failures
    for problem in problems:
        print(f"failed: {problem}")
    return 1 if problems else 0


def _model_folder(arguments: argparse.Namespace) -> Path:
    if arguments.m is not None:
        return arguments.m
    if arguments.d is None or arguments.p is None:
        raise ValueError(
            "which model? give -d DATASET and -p PLANS (with -run NAME where nnssl_train had one), or -m FOLDER"
        )
    plans = arguments.p + (f"_{arguments.run}" if arguments.run else "")
    return results_folder() / dataset_name(arguments.d) / f"{arguments.tr}__{plans}__{arguments.c}"


def _folds(given: list[str] | None) -> list[int | str] | None:
    if given is None:
        return None
    wrong = [fold for fold in given if fold != "all" and not fold.isdigit()]
    if wrong:
        raise ValueError(f"-f {' '.join(given)}: give fold numbers (0 1 2) or all")
    return [fold if fold == "all" else int(fold) for fold in given]


def _hint(axes: Sequence[int] | None, arguments: argparse.Namespace, device: str) -> None:
    if device == "cpu" and not arguments.disable_tta and axes:
        print(f"hint: mirroring predicts every crop {2 ** len(axes)} times; --disable_tta does it once")
