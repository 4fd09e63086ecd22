"""From an encoder file to an encoder that fits the plans, and from a name to a trainer class."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnssl.encoders import build_encoder
from nnssl.encoders.base import Encoder
from nnssl.trainers.finetune_network import encoder_channels
from nnssl.trainers.finetune_run import EncoderFile, check_encoder_file
from nnssl.trainers.frozen_encoder import FrozenEncoderTrainer
from nnssl.weights.encoder_file import Weights, read_weights, sha256
from nnssl.weights.hub import fetch
from nnssl.weights.identify import Identity, identify
from nnssl.weights.load import load_weights
from nnssl.weights.sources import origin_of


def load_for_plans(
    path: Path, plans: Mapping[str, Any], configuration: str, *, allow_partial: bool, allow_intensity: bool
) -> tuple[EncoderFile, Encoder, str]:
    """Read an encoder file, check it against the plans of a run and load it.

    Returns:
        The file as it is recorded, the encoder of the plans with the file's native crop and weights, and one line
        that says how many tensors were loaded. The encoder reads one channel (channels "mix") or all of the data set
        together; weights for another number are adapted.

    Raises:
        ValueError: another encoder, options or intensity than planned, or fewer tensors than all without
            `allow_partial`.
    """
    path = fetch(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"-pretrained_weights {path}: no such file; give the encoder.safetensors of nnssl_pretrain or a published "
            "file (nnssl_weights inspect FILE says whether it is read)"
        )
    weights = read_weights(path)
    found = _identified(path, weights, plans["nnssl"]["encoder"])
    facts = path.name, sha256(path), found.encoder, found.native_crop, weights.header, found.options
    file = EncoderFile(*facts, origin=origin_of(weights))
    check_encoder_file(plans, configuration, file, allow_intensity=allow_intensity)
    options = {**found.options, "input_channels": encoder_channels(plans["configurations"][configuration])}
    encoder = build_encoder(found.encoder, native_crop=found.native_crop, intensity=found.intensity, options=options)
    try:
        report = load_weights(encoder, weights, allow_partial=allow_partial)
    except ValueError as error:
        raise ValueError(f"loading {path}: {error} (--allow_partial)") from error
    return replace(file, loaded=f"{report.loaded} of {report.total}"), encoder, report.summary()


def _identified(path: Path, weights: Weights, planned: str) -> Identity:
    try:
        return identify(weights, planned)
    except ValueError as error:
        raise ValueError(f"loading {path}: {error}") from error


def trainer_class(name: str) -> type[FrozenEncoderTrainer]:
    """FrozenEncoderTrainer, or a subclass of it found by nnU-Net (nnUNet_extTrainer)."""
    if name == FrozenEncoderTrainer.__name__:
        return FrozenEncoderTrainer
    try:
        found = recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        raise ValueError(f"trainer {name!r} was not found; put its folder into nnUNet_extTrainer ({error})") from error
    if not issubclass(found, FrozenEncoderTrainer):
        raise ValueError(
            f"trainer {name!r} is not a FrozenEncoderTrainer; use nnUNetv2_train for nnU-Net's own trainers"
        )
    return found
