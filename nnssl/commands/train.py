"""nnssl_train: a segmentation network on a pretrained encoder, frozen or tuned, trained by nnU-Net's procedure."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnssl.commands import command_line
from nnssl.networks import DECODERS
from nnssl.paths import dataset_name
from nnssl.recipe import FineTuneRecipe
from nnssl.trainers.finetune_network import NetworkSettings
from nnssl.trainers.finetune_run import RunOptions
from nnssl.weights.encoder_file import sha256

if TYPE_CHECKING:
    from nnssl.trainers.finetune_start import Request

EXAMPLES = """\
  nnssl_train 4 3d_fullres 0 -p nnsslPlans_vit_tiny_8 -pretrained_weights encoder.safetensors -run pretrained
  nnssl_train 4 3d_fullres 0 -p nnsslPlans_vit_tiny_8 -pretrained_weights encoder.safetensors -run lora -lora 8
  nnssl_train 4 3d_fullres 0 -p nnsslPlans_vit_tiny_8 -pretrained_weights encoder.safetensors -run probe -decoder linear
  nnssl_train 4 3d_fullres 0 -p nnsslPlans_vit_tiny_8 -pretrained_weights encoder.safetensors -run full --full
  nnssl_train 4 3d_fullres 0 -p nnsslPlans_vit_tiny_8 --random_frozen -run random -num_labelled 10 -seed 0
  nnssl_train 4 3d_fullres 0 -p nnsslPlans_vit_tiny_8 --from_scratch -run scratch --set epochs=20 lr=3e-4
  nnssl_train 4 3d_fullres 0 -p nnsslPlans_vit_tiny_8 -run scratch --c"""
KEYS = (*FineTuneRecipe.__dataclass_fields__, *NetworkSettings.__dataclass_fields__)  # of --set
FROZEN = {"frozen": "true", "unfreeze_last": "0", "lora_rank": "0"}


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
    command.add_argument(
        "-tr", default="FrozenEncoderTrainer", metavar="TRAINER", help="[OPTIONAL] your own subclass of the trainer"
    )
    _add_network(command)
    command.add_argument("-run", metavar="NAME", help="[OPTIONAL] name of the run, appended to the plans name")
    command.add_argument(
        "-num_labelled", type=int, metavar="N", help="[OPTIONAL] train on N cases of the fold, drawn by the seed"
    )
    command.add_argument("-seed", type=int, help="[OPTIONAL] of the subset and of the training; default 0")
    command.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
        help=f"[OPTIONAL] change the plans' recipe and network for this run; keys: {', '.join(KEYS)}",
    )  # fmt: skip
    _add_running(command)
    command_line.add_device(command)
    return command


def _add_running(command: argparse.ArgumentParser) -> None:
    """Continuing, validating, and what is accepted all the same."""
    command.add_argument("--c", action="store_true", help="[OPTIONAL] continue this run from its last checkpoint")
    command.add_argument("--val", action="store_true", help="[OPTIONAL] only validate a finished run")
    command.add_argument("--npz", action="store_true", help="[OPTIONAL] save probabilities of the validation cases")
    command.add_argument(
        "--disable_tta", action="store_true", help="[OPTIONAL] validate without mirroring, up to 8 times faster"
    )
    command.add_argument("--no_validation", action="store_true", help="[OPTIONAL] stop after training")
    command.add_argument(
        "--allow_partial", action="store_true", help="[OPTIONAL] accept a weight file that lacks tensors or has others"
    )
    command.add_argument(
        "--allow_overlap", action="store_true", help="[OPTIONAL] accept validation cases seen in pretraining"
    )
    command.add_argument(
        "--allow_intensity", action="store_true", help="[OPTIONAL] accept another intensity than the encoder's"
    )


def _add_network(command: argparse.ArgumentParser) -> None:
    """Where the encoder comes from, how much of it is trained, and what stands on it."""
    start = command.add_mutually_exclusive_group()
    start.add_argument(
        "-pretrained_weights",
        metavar="FILE",
        type=Path,
        help="weights of any known format: a file, a URL or hf://ORG/REPO/FILE@REVISION; this or a control is needed",
    )
    start.add_argument("--random_frozen", action="store_true", help="control: a random encoder that stays frozen")
    start.add_argument("--from_scratch", action="store_true", help="control: a random encoder that is trained too")
    tuning = command.add_argument_group(
        "how much of the encoder is trained (default: as planned; frozen, or full in SMIT's recipes)"
    ).add_mutually_exclusive_group()
    tuning.add_argument("--frozen", action="store_true", help="[OPTIONAL] nothing, even if the plans train it")
    tuning.add_argument("--full", action="store_true", help="[OPTIONAL] all of it, lower layers the slower")
    tuning.add_argument("-unfreeze_last", type=int, metavar="N", help="[OPTIONAL] its last N blocks")
    tuning.add_argument("-lora", type=int, metavar="RANK", help="[OPTIONAL] low-rank additions to its attention")
    command.add_argument("-decoder", metavar="NAME", help=f"[OPTIONAL] {', '.join(DECODERS)}; default: the plans'")
    command.add_argument(
        "-channels",
        metavar="RULE",
        help="[OPTIONAL] of several image channels: mix, replicate or reinit; default: the plans'",
    )


def work(arguments: argparse.Namespace) -> int:
    """Check, build the trainer, train and validate."""
    os.environ.setdefault("nnUNet_def_n_proc", str(min(8, os.cpu_count() or 1)))  # read when nnunetv2 is imported
    from nnssl.trainers.finetune_start import resume, start

    if arguments.c and arguments.val:
        raise ValueError("--c and --val: give one of them")
    if arguments.c or arguments.val:
        session = resume(request(arguments), _given(arguments), finished=arguments.val)
    else:
        session = start(request(arguments))
    for note in session.notes:
        print(note)
    session.trainer.validate_with_mirroring = not arguments.disable_tta
    if not arguments.val:
        session.trainer.run_training()
    if not arguments.no_validation:
        session.trainer.perform_actual_validation(arguments.npz)
    print(f"results: {session.trainer.output_folder}")
    return 0


def request(arguments: argparse.Namespace) -> "Request":
    """The arguments in the trainers' words."""
    from nnssl.trainers.finetune_start import Request

    return Request(
        dataset_name(arguments.dataset),
        arguments.p,
        arguments.configuration,
        _fold(arguments.fold),
        command_line.device(arguments),
        _options(arguments),
        arguments.pretrained_weights,
        arguments.tr,
    )


def _options(arguments: argparse.Namespace) -> RunOptions:
    starts = (arguments.pretrained_weights is not None, arguments.random_frozen, arguments.from_scratch)
    if not any(starts) and not (arguments.c or arguments.val):
        raise ValueError("give -pretrained_weights FILE, or one of the controls --random_frozen and --from_scratch")
    mode = ("pretrained", "random_frozen", "scratch")[starts.index(True) if any(starts) else 0]
    allowed = tuple(word for word in ("overlap", "partial", "intensity") if getattr(arguments, f"allow_{word}"))
    settings = (*_network_words(arguments), *arguments.set)
    return RunOptions(mode, arguments.run, arguments.num_labelled, arguments.seed or 0, settings, allowed)


def _network_words(arguments: argparse.Namespace) -> list[str]:
    """The flags about the network as key=value of --set, which is how a run records them."""
    words: dict[str, Any] = {}
    if arguments.frozen:
        words = FROZEN
    elif arguments.full:
        words = FROZEN | {"frozen": "false"}
    elif arguments.unfreeze_last is not None:
        words = FROZEN | {"unfreeze_last": arguments.unfreeze_last}
    elif arguments.lora is not None:
        words = FROZEN | {"lora_rank": arguments.lora}
    chosen = {"decoder": arguments.decoder, "channels": arguments.channels}
    words = words | {word: value for word, value in chosen.items() if value is not None}
    return [f"{word}={value}" for word, value in words.items()]


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


def _fold(text: str) -> int | str:
    if text != "all" and not text.isdigit():
        raise ValueError(f"fold {text!r}: give a number (0, 1, ...) or all")
    return text if text == "all" else int(text)
