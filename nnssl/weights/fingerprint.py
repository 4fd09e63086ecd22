"""A fingerprint of an encoder: its features for a volume that a formula makes, short enough to compare by eye."""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nnssl.encoders.base import Encoder, EncoderSpec, to_encoder_range

SIDE = 48  # voxels; the volume is about this large and no cube, so that swapped axes show
FREQUENCIES = (0.11, 0.07, 0.13)  # radians per voxel along X, Y, Z
PHASES = (0.3, 0.5, 0.7)
VALUES = 8
STEP = 0.25  # of a map's standard deviation: what the hash does not resolve


@dataclass(frozen=True)
class MapFacts:
    """One feature map in numbers."""

    shape: tuple[int, ...]  # (C, X, Y, Z)
    mean: float
    std: float


@dataclass(frozen=True)
class Fingerprint:
    """Features of one encoder; rounding errors change the hash only where a value lies at the edge of a step."""

    crop: tuple[int, int, int]  # voxels
    maps: tuple[MapFacts, ...]  # fine to coarse
    values: tuple[float, ...]  # in standard deviations from the mean of their map, maps taken in turn
    hash: str  # 8 hexadecimal digits, of the values in steps of `STEP`


def fixed_volume(spec: EncoderSpec) -> Tensor:
    """A volume (1, C, X, Y, Z) in the encoder's range, the same on every machine."""
    axes = []
    for side, frequency, phase in zip(_crop(spec), FREQUENCIES, PHASES, strict=True):
        axes.append(torch.sin(frequency * torch.arange(side, dtype=torch.float64) + phase))
    x, y, z = axes
    waves = x[:, None, None] * y[:, None] * z
    channels = [(waves * math.cos(channel) + 1) / 2 for channel in range(spec.input_channels)]
    return to_encoder_range(torch.stack(channels)[None].float(), spec.intensity.encoder_range)


def fingerprint(encoder: Encoder, device: torch.device) -> Fingerprint:
    """Features of `fixed_volume` in float32, whatever type the weights were stored in.

    Raises:
        ValueError: a feature is NaN or infinite.
    """
    encoder = encoder.to(device).float().eval()
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        maps = encoder(fixed_volume(encoder.spec).to(device)).maps
    maps = [one[0].double().cpu() for one in maps]
    if not all(torch.isfinite(one).all() for one in maps):
        raise ValueError(f"encoder {encoder.spec.name!r} gives NaN or infinity for an ordinary volume; do not use it")
    facts = tuple(MapFacts(tuple(one.shape), float(one.mean()), float(one.std())) for one in maps)
    values = tuple(_value(maps[index % len(maps)], index) for index in range(VALUES))
    steps = ",".join(str(round(value / STEP)) for value in values)
    digest = hashlib.sha256(f"{encoder.spec.name} {steps}".encode()).hexdigest()[:8]
    return Fingerprint(_crop(encoder.spec), facts, values, digest)


def _crop(spec: EncoderSpec) -> tuple[int, int, int]:
    side = -(-SIDE // spec.crop_multiple) * spec.crop_multiple
    return side, side + spec.crop_multiple, max(side - spec.crop_multiple, spec.crop_multiple)


def _value(one: Tensor, index: int) -> float:
    """A value of a map in standard deviations from its mean."""
    place = (2 * index + 1) * one.numel() // (2 * VALUES)
    return float((one.flatten()[place] - one.mean()) / one.std())
