"""What one fine-tuning run is: the plans it is trained with, where it lives, and what it refuses."""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnssl.config import from_dict, knows, override, to_dict
from nnssl.encoders import encoder_spec
from nnssl.encoders.base import IntensityRange
from nnssl.paths import load_json
from nnssl.recipe import FineTuneRecipe
from nnssl.trainers.finetune_network import NetworkSettings, changed_network, network_settings, write_settings
from nnssl.weights.header import EncoderHeader, seen_cases

MODES = ("pretrained", "random_frozen", "scratch")
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
FOLD_PLANS = "plans.json"  # of one fold; nnU-Net keeps another beside the folds
# folds of one run may use encoders that left out different cases, and what each file needed to be allowed
_FOLD_WORDS = ("weights_file", "weights_sha256", "weights_origin", "loaded", "allowed")


@dataclass(frozen=True)
class RunOptions:
    """What the user asked for, apart from the encoder file."""

    mode: str = "pretrained"
    name: str | None = None  # appended to the saved plans name
    num_labelled: int | None = None  # training cases; None: all of the fold
    seed: int = 0
    settings: tuple[str, ...] = ()  # key=value
    allowed: tuple[str, ...] = ()  # of overlap, partial, intensity: refusals that the user lifted

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r} is unknown; known: {', '.join(MODES)}")
        if self.name is not None and (
            not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?", self.name) or "__" in self.name
        ):
            raise ValueError(
                f"-run {self.name!r}: use letters, digits, dot, dash and single underscores, "
                "beginning and ending with a letter or digit (nnU-Net separates names by a double underscore)"
            )


@dataclass(frozen=True)
class EncoderFile:
    """An encoder file as it is recorded: by name and content, never by path."""

    name: str
    sha256: str
    encoder: str  # a name of nnssl.encoders.ENCODERS
    native_crop: tuple[int, int, int]  # voxels, X Y Z
    header: EncoderHeader | None  # None: a foreign format
    options: dict[str, Any] = field(default_factory=dict)  # what differs from the line of ENCODERS
    origin: str | None = None  # format of the published file that the weights come from; None: trained with nnssl
    loaded: str | None = None  # tensors of the encoder that the file filled, "175 of 175"


def run_plans(
    plans: Mapping[str, Any], configuration: str, options: RunOptions, *, file: EncoderFile | None = None
) -> dict:
    """The plans of one run: the planner's, with the run's name, recipe, network and encoder file filled in.

    Raises:
        ValueError: plans of another planner, an unknown setting, or a network that makes no sense.
    """
    check_plans(plans, configuration)
    changed = copy.deepcopy(dict(plans))
    if options.name is not None:
        changed["plans_name"] = f"{changed['plans_name']}_{options.name}"
    section, chosen = changed["nnssl"], changed["configurations"][configuration]
    recipe_words, network_words = _sort_settings(options.settings)
    section["finetune"] = to_dict(override(from_dict(FineTuneRecipe, section["finetune"]), recipe_words))
    network = changed_network(chosen, network_words, options.mode)
    write_settings(chosen, network)
    if file is not None:
        chosen["architecture"]["arch_kwargs"]["native_crop"] = list(file.native_crop)
        section["native_crop"] = list(file.native_crop)
    section["run"] = {
        "mode": options.mode,
        "tuning": network.tuning,
        "weights_file": file.name if file else None,
        "weights_sha256": file.sha256 if file else None,
        "weights_origin": file.origin if file else None,
        "loaded": file.loaded if file else None,
        "allowed": list(options.allowed),
        "num_labelled": options.num_labelled,
        "seed": options.seed,
        "settings": list(options.settings),
    }
    return changed


def check_plans(plans: Mapping[str, Any], configuration: str) -> None:
    """Refuse plans of another planner and configurations that are not for segmentation."""
    name = plans.get("plans_name")
    if "nnssl" not in plans:
        raise ValueError(
            f"plans {name!r} were not made by nnssl_plan_and_preprocess; make them with it, or use nnUNetv2_train"
        )
    known = [key for key in plans["configurations"] if key != "pretrain"]
    if configuration not in known:
        raise ValueError(f"configuration {configuration!r} is not in plans {name!r}; known: {', '.join(known)}")


def check_recipe(recipe: FineTuneRecipe, labels: Mapping[str, Any], dataset: str) -> None:
    """Refuse a data set without labels, and binary cross entropy for several labels or regions."""
    foreground = [name for name, value in labels.items() if name != "ignore" and value != 0]
    if not foreground:
        raise ValueError(f"{dataset} has no labels to train on; give a labelled data set, or use nnssl_pretrain")
    if recipe.loss == "bce_dice" and len(foreground) > 1:
        raise ValueError(
            f"loss bce_dice is for one foreground label or region, {dataset} has {len(foreground)} "
            f"({', '.join(foreground[:4])}{', ...' if len(foreground) > 4 else ''}); use --set loss=ce_dice"
        )


def check_encoder_file(
    plans: Mapping[str, Any], configuration: str, file: EncoderFile, *, allow_intensity: bool = False
) -> None:
    """Refuse an encoder file whose encoder, its options or its intensity are not what the plans were made for."""
    section = plans["nnssl"]
    again = f"plan again with: nnssl_plan_and_preprocess -d {plans['dataset_name']} -pretrained_weights FILE"
    if file.encoder != section["encoder"]:
        raise ValueError(f"{file.name} holds {file.encoder}, but the plans are for {section['encoder']}; {again}")
    words = plans["configurations"][configuration]["architecture"]["arch_kwargs"]
    held, wanted = (_options(file.encoder, options) for options in (file.options, words.get("encoder_options") or {}))
    if held != wanted:
        raise ValueError(
            f"{file.name} holds {file.encoder} with {_differing(held, wanted)}, but the plans are for "
            f"{_differing(wanted, held)}; {again}"
        )
    planned = from_dict(IntensityRange, section["intensity"])
    recorded = section.get("encoder_intensity")  # a difference that the planner knows of and gives the reason for
    expected = from_dict(IntensityRange, recorded) if recorded else planned
    seen = file.header.intensity if file.header else planned
    if seen not in (planned, expected) and not allow_intensity:
        raise ValueError(
            f"{file.name} was trained on intensity {seen} in {seen.encoder_range}, but the plans store {planned} in "
            f"{planned.encoder_range}; {again}, or add --allow_intensity if that difference is meant"
        )


def check_overlap(file: EncoderFile, dataset: str, validation: Sequence[str], fold: int | str) -> str:
    """Refuse validation cases that the encoder saw in pretraining.

    Returns:
        One line that says what was found, for the log.
    """
    if file.header is None or file.header.data is None:
        return f"{file.name} does not say which cases it was pretrained on; overlap with validation cases is unknown"
    seen = seen_cases(file.header.data, dataset, list(validation))
    if seen:
        raise ValueError(
            f"{len(seen)} of {len(validation)} validation cases of fold {fold} were seen in pretraining "
            f"(first: {seen[0]}); pretrain with -f {fold}, or add --allow_overlap to train all the same"
        )
    return f"none of the {len(validation)} validation cases was seen in pretraining"


def check_same_run(folder: Path, plans: Mapping[str, Any]) -> None:
    """Refuse a fold whose plans differ from those of the run's other folds (the encoder file may differ)."""
    file = folder / "plans.json"
    if not file.is_file() or not any((fold / name).is_file() for fold in folder.glob("fold_*") for name in CHECKPOINTS):
        return
    earlier, now = _comparable(load_json(file)), _comparable(plans)
    different = sorted(key for key in earlier.keys() | now.keys() if earlier.get(key) != now.get(key))
    if different:
        raise ValueError(
            f"run {folder.name} has folds trained with other settings ({', '.join(different)}); "
            "use the same settings for all folds, or another -run NAME"
        )


def check_continued(
    plans: Mapping[str, Any], configuration: str, given: Mapping[str, Any], settings: Sequence[str]
) -> None:
    """Refuse to continue a run with anything else than what it was started with.

    Args:
        plans: of the run.
        given: keys of `plans["nnssl"]["run"]` that the user gave again, None where not.
        settings: key=value of --set given again.
    """
    run = plans["nnssl"]["run"]
    words = [
        f"{key} {run.get(key)}, not {value}"
        for key, value in given.items()
        if value is not None and value != run.get(key)
    ]
    words += [f"not --set {word}" for word in settings if not _holds(plans, configuration, word)]
    if words:
        raise ValueError(f"--c keeps the run's settings: {'; '.join(words)}; leave it out or use a new -run")


def existing_checkpoint(fold_folder: Path) -> Path | None:
    """The checkpoint to continue from: final, latest or best, in this order."""
    return next((fold_folder / name for name in CHECKPOINTS if (fold_folder / name).is_file()), None)


def _sort_settings(settings: Sequence[str]) -> tuple[list[str], list[str]]:
    network = [word for word in settings if knows(NetworkSettings, word)]
    recipe = [word for word in settings if word not in network]
    known = [*FineTuneRecipe.__dataclass_fields__, *NetworkSettings.__dataclass_fields__]
    for word in recipe:
        if not knows(FineTuneRecipe, word):
            raise ValueError(f"--set {word!r}: expected key=value; known keys: {', '.join(known)}")
    return recipe, network


def _holds(plans: Mapping[str, Any], configuration: str, assignment: str) -> bool:
    """Whether a key=value of --set is what these plans have already."""
    recipe_words, network_words = _sort_settings([assignment])
    recipe = from_dict(FineTuneRecipe, plans["nnssl"]["finetune"])
    network = network_settings(plans["configurations"][configuration])
    try:
        return override(recipe, recipe_words) == recipe and override(network, network_words) == network
    except ValueError:  # it does not even go with the others
        return False


def _comparable(plans: Mapping[str, Any]) -> dict[str, Any]:
    section = plans.get("nnssl", {})
    run = {key: value for key, value in section.get("run", {}).items() if key not in _FOLD_WORDS}
    networks = {name: config for name, config in plans["configurations"].items() if name != "pretrain"}
    return {**run, "finetune": section.get("finetune"), "configurations": networks}


def _options(encoder: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What differs from the encoder's line in the table; the number of input channels is adapted, not compared."""
    differing = encoder_spec(encoder, options=options).options
    return {key: value for key, value in differing.items() if key != "input_channels"}


def _differing(options: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    """Options that others lack or have otherwise, "the table's options" where there is none."""
    words = [f"{key}={value}" for key, value in options.items() if key not in others or others[key] != value]
    return ", ".join(words) or "the table's options"
