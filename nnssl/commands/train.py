"""nnssl_train: a segmentation network on a frozen, pretrained encoder, trained by nnU-Net's procedure."""

import argparse
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nnssl.commands import command_line
from nnssl.data.seeds import derived_seed
from nnssl.data.stamp import check_stamp
from nnssl.data.volumes import stored_cases
from nnssl.paths import dataset_name, load_json, plans_in, preprocessed_folder, results_folder, save_json
from nnssl.trainers.finetune_run import (
    EncoderFile,
    RunOptions,
    check_continued,
    check_overlap,
    check_plans,
    check_same_run,
    existing_checkpoint,
    run_plans,
)
from nnssl.trainers.splits import cases_of_fold, labelled_subset, splits_for
from nnssl.weights.encoder_file import sha256

if TYPE_CHECKING:
    from nnssl.trainers.frozen_encoder import FrozenEncoderTrainer

EXAMPLES = """\
  nnssl_train 4 3d_fullres 0 -p nnsslPlans_vit_tiny_8 -pretrained_weights encoder.safetensors -run pretrained
  nnssl_train 4 3d_fullres 0 -p nnsslPlans_vit_tiny_8 --random_frozen -run random -num_labelled 10 -seed 0
  nnssl_train 4 3d_fullres 0 -p nnsslPlans_vit_tiny_8 --from_scratch -run scratch --set epochs=20 lr=3e-4
  nnssl_train 4 3d_fullres 0 -p nnsslPlans_vit_tiny_8 -run scratch --c"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    return command_line.run(work, build_parser(), argv)


def build_parser() -> argparse.ArgumentParser:
    """The command's words; nnU-Net's where nnU-Net has them."""
    command = command_line.parser("nnssl_train", __doc__ or "", EXAMPLES)
    command.add_argument("dataset", help="data set number or name")
    command.add_argument("configuration", help="configuration of the plans, for example 3d_fullres")
    command.add_argument("fold", help="fold of the cross-validation (0, 1, ...) or all")
    command.add_argument("-p", required=True, metavar="PLANS", help="plans name, for example nnsslPlans_vit_tiny_8")
    command.add_argument("-tr", default="FrozenEncoderTrainer", help="[OPTIONAL] trainer class")
    start = command.add_mutually_exclusive_group()
    start.add_argument("-pretrained_weights", metavar="FILE", type=Path, help="encoder file; it stays frozen")
    start.add_argument("--random_frozen", action="store_true", help="a random encoder that stays frozen (control)")
    start.add_argument("--from_scratch", action="store_true", help="a random encoder that is trained too (control)")
    command.add_argument("-run", metavar="NAME", help="[OPTIONAL] name of the run, appended to the plans name")
    command.add_argument(
        "-num_labelled", type=int, metavar="N", help="[OPTIONAL] train on N cases of the fold (nested)"
    )
    command.add_argument("-seed", type=int, help="[OPTIONAL] of the subset and of the training; default 0")
    command.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="[OPTIONAL] recipe")
    command.add_argument("--c", action="store_true", help="continue this run from its last checkpoint")
    command.add_argument("--val", action="store_true", help="only validate a finished run")
    command.add_argument("--npz", action="store_true", help="save probabilities of the validation cases")
    command.add_argument("--disable_tta", action="store_true", help="validate without mirroring (8 times faster)")
    command.add_argument("--no_validation", action="store_true", help="stop after training")
    command.add_argument("--allow_partial", action="store_true", help="accept an encoder file that lacks tensors")
    command.add_argument("--allow_overlap", action="store_true", help="accept validation cases seen in pretraining")
    command.add_argument("--allow_intensity", action="store_true", help="accept another intensity than the encoder's")
    command_line.add_device(command)
    return command


def work(arguments: argparse.Namespace) -> int:
    """Check, build the trainer, train and validate."""
    os.environ.setdefault("nnUNet_def_n_proc", str(min(8, os.cpu_count() or 1)))  # read when nnunetv2 is imported
    dataset = dataset_name(arguments.dataset)
    fold = _fold(arguments.fold)
    device = command_line.device(arguments)
    _seed(arguments.seed or 0)
    trainer = _resumed(arguments, dataset, fold, device) if arguments.c or arguments.val else None
    if trainer is None:
        trainer = _started(arguments, dataset, fold, device)
    trainer.validate_with_mirroring = not arguments.disable_tta
    if not arguments.val:
        trainer.run_training()
    if not arguments.no_validation:
        trainer.perform_actual_validation(arguments.npz)
    print(f"results: {trainer.output_folder}")
    return 0


def _started(
    arguments: argparse.Namespace, dataset: str, fold: int | str, device: torch.device
) -> "FrozenEncoderTrainer":
    """A trainer of a new run with its encoder in place."""
    folder, plans = _planned(arguments, dataset)
    options = _options(arguments)
    file, encoder = _encoder(arguments, plans) if arguments.pretrained_weights else (None, None)
    changed = run_plans(plans, arguments.configuration, options, file=file)
    model = _model_folder(arguments, dataset, changed["plans_name"])
    found = existing_checkpoint(model / f"fold_{fold}")
    if found is not None:
        raise ValueError(f"run {model.name} fold {fold} has {found.name} already; add --c, or name another -run NAME")
    check_same_run(model, changed)
    _check_cases(folder, plans, arguments, fold=fold, file=file)
    trainer = _trainer(arguments, changed, dataset, fold=fold, device=device)
    save_json(changed, Path(trainer.output_folder) / "plans.json")
    if encoder is not None:
        trainer.set_encoder(encoder.state_dict())
    return trainer


def _resumed(
    arguments: argparse.Namespace, dataset: str, fold: int | str, device: torch.device
) -> "FrozenEncoderTrainer":
    """The trainer of an existing run at its last checkpoint; --val needs the final one."""
    if arguments.c and arguments.val:
        raise ValueError("--c and --val: give one of them")
    options = _options(arguments)
    model = _model_folder(arguments, dataset, arguments.p + (f"_{options.name}" if options.name else ""))
    found = existing_checkpoint(model / f"fold_{fold}")
    if found is None or (arguments.val and found.name != "checkpoint_final.pth"):
        wanted = "checkpoint_final.pth" if arguments.val else "checkpoint"
        raise FileNotFoundError(
            f"{model / f'fold_{fold}'}: no {wanted} there; check -p, -run and the fold, or train first"
        )
    plans = load_json(model / f"fold_{fold}" / "plans.json")
    check_stamp(preprocessed_folder() / dataset, plans, arguments.configuration)
    check_continued(plans, arguments.configuration, _given(arguments), arguments.set)
    seed = plans["nnssl"]["run"]["seed"]
    _seed(seed)
    trainer = _trainer(arguments, plans, dataset, fold=fold, device=device)
    trainer.load_checkpoint(str(found))
    _seed(derived_seed(seed % 2**32, trainer.current_epoch))  # not the batches that the run began with
    print(f"continuing from {found} (epoch {trainer.current_epoch} of {trainer.num_epochs})")
    return trainer


def _planned(arguments: argparse.Namespace, dataset: str) -> tuple[Path, dict[str, Any]]:
    folder = preprocessed_folder() / dataset
    file = folder / f"{arguments.p}.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"plans {arguments.p!r} of {dataset}: no {file}; known plans: {', '.join(plans_in(folder)) or 'none'}; "
            "run nnssl_plan_and_preprocess first"
        )
    return folder, load_json(file)


def _options(arguments: argparse.Namespace) -> RunOptions:
    starts = (arguments.pretrained_weights is not None, arguments.random_frozen, arguments.from_scratch)
    if not any(starts) and not (arguments.c or arguments.val):
        raise ValueError("give -pretrained_weights FILE, or one of the controls --random_frozen and --from_scratch")
    mode = ("pretrained", "random_frozen", "scratch")[starts.index(True) if any(starts) else 0]
    allowed = tuple(word for word in ("overlap", "partial", "intensity") if getattr(arguments, f"allow_{word}"))
    seed = arguments.seed or 0
    return RunOptions(mode, arguments.run, arguments.num_labelled, seed, tuple(arguments.set), allowed)


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the user asked for, in the words of a run's record; None where a flag was left out."""
    weights = arguments.pretrained_weights
    started = weights is not None or arguments.random_frozen or arguments.from_scratch
    return {
        "mode": _options(arguments).mode if started else None,
        "weights_sha256": sha256(weights) if weights is not None else None,
        "num_labelled": arguments.num_labelled,
        "seed": arguments.seed,
    }


def _encoder(arguments: argparse.Namespace, plans: dict[str, Any]) -> tuple[EncoderFile, torch.nn.Module]:
    """The encoder file, checked against the plans, and an encoder that holds its weights."""
    from nnssl.trainers.finetune_encoder import load_for_plans

    check_plans(plans, arguments.configuration)
    file, encoder, summary = load_for_plans(
        arguments.pretrained_weights,
        plans,
        allow_partial=arguments.allow_partial,
        allow_intensity=arguments.allow_intensity,
    )
    print(summary)
    return file, encoder


def _check_cases(
    folder: Path, plans: dict[str, Any], arguments: argparse.Namespace, *, fold: int | str, file: EncoderFile | None
) -> None:
    """Stored volumes, fold, number of labelled cases, and overlap with pretraining, before anything is written."""
    stored = folder / plans["configurations"][arguments.configuration]["data_identifier"]
    cases = stored_cases(stored)
    if not cases:
        raise FileNotFoundError(f"{stored}: no preprocessed cases; run nnssl_plan_and_preprocess -d {folder.name}")
    check_stamp(folder, plans, arguments.configuration)
    if set(load_json(folder / "dataset.json")["labels"]) == {"background"}:
        raise ValueError(f"{folder.name} has no labels to train on; give a labelled data set, or use nnssl_pretrain")
    train, validation = cases_of_fold(splits_for(folder, cases), fold)
    if arguments.num_labelled is not None:
        labelled_subset(train, arguments.num_labelled, arguments.seed or 0)
    if file is not None and fold != "all" and not arguments.allow_overlap:
        print(check_overlap(file, folder.name, validation, fold))


def _trainer(
    arguments: argparse.Namespace, plans: dict[str, Any], dataset: str, *, fold: int | str, device: torch.device
) -> "FrozenEncoderTrainer":
    from nnssl.trainers.finetune_encoder import trainer_class

    plans = {**plans, "continue_training": arguments.c}
    dataset_json = load_json(preprocessed_folder() / dataset / "dataset.json")
    trainer = trainer_class(arguments.tr)(plans, arguments.configuration, fold, dataset_json, device)
    trainer.initialize()
    return trainer


def _model_folder(arguments: argparse.Namespace, dataset: str, plans_name: str) -> Path:
    return results_folder() / dataset / f"{arguments.tr}__{plans_name}__{arguments.configuration}"


def _fold(text: str) -> int | str:
    if text != "all" and not text.isdigit():
        raise ValueError(f"fold {text!r}: give a number (0, 1, ...) or all")
    return text if text == "all" else int(text)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
