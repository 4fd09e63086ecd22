"""What every encoder is: facts about it (EncoderSpec), what it returns (Features), how it is called (Encoder)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

INTENSITY_KINDS = ("percentile", "window")


@dataclass(frozen=True)
class IntensityRange:
    """How raw intensities become [0, 1], and the range that the encoder sees.

    percentile: `low` and `high` are percentiles in percent of the whole image (3DINO: 0.05 and 99.95).
    window: `low` and `high` are intensities (CT: Hounsfield units). Both clip.
    """

    kind: str = "percentile"
    low: float = 0.05
    high: float = 99.95
    encoder_range: tuple[float, float] = (-1.0, 1.0)  # 3DINO; SMIT (0, 1)

    def __post_init__(self) -> None:
        if self.kind not in INTENSITY_KINDS:
            raise ValueError(f"intensity {self.kind!r} is unknown; known: {', '.join(INTENSITY_KINDS)}")
        if not self.low < self.high:
            raise ValueError(f"intensity {self}: the lower bound must be below the upper bound")
        if self.kind == "percentile" and not 0 <= self.low < self.high <= 100:
            raise ValueError(f"intensity {self}: percentiles lie between 0 and 100")

    def __str__(self) -> str:
        return f"{self.kind}:{self.low:g},{self.high:g}"


def to_encoder_range(volume: Tensor, encoder_range: tuple[float, float], *, out: Tensor | None = None) -> Tensor:
    """Map stored [0, 1] intensities (0 = background) to the range that the encoder was trained on.

    `out=volume` works in place.
    """
    low, high = encoder_range
    return torch.mul(volume, high - low, out=out).add_(low)


@dataclass(frozen=True)
class EncoderSpec:
    """Facts about an encoder; planners and decoders read them without building a network."""

    name: str
    channels: tuple[int, ...]  # per feature map, fine -> coarse
    strides: tuple[int, ...]  # input voxels per feature voxel, same order
    crop_multiple: int  # every crop side is a multiple of this (voxels)
    native_crop: tuple[int, int, int]  # crop of the pretraining (voxels, X Y Z)
    native_spacing: tuple[float, float, float] | None = None  # mm; None: trained without resampling
    intensity: IntensityRange = field(default_factory=IntensityRange)


class Features(NamedTuple):
    """What an encoder returns for volumes (B, C, X, Y, Z)."""

    maps: list[Tensor]  # (B, channels[i], X/strides[i], Y/strides[i], Z/strides[i])
    summary: Tensor  # (B, channels[-1]): class token, or mean of the last map
    tokens: dict[str, Tensor]  # named extra taps


class Encoder(nn.Module, ABC):
    """A network from volumes to features."""

    spec: EncoderSpec

    @abstractmethod
    def forward(self, volume: Tensor, token_mask: Tensor | None = None) -> Features:
        """Encode volumes.

        Args:
            volume: (B, 1, X, Y, Z) in `spec.intensity.encoder_range`; sides are multiples of `spec.crop_multiple`.
            token_mask: (B, N) bool in raster order (Z fastest), True = the token is hidden from the encoder.
        """


def check_crop(spec: EncoderSpec, crop: tuple[int, ...]) -> None:
    """Raise a ValueError that names the nearest allowed crop unless every side fits the encoder."""
    if len(crop) == 3 and all(side > 0 and side % spec.crop_multiple == 0 for side in crop):
        return
    nearest = tuple(max(1, round(side / spec.crop_multiple)) * spec.crop_multiple for side in crop)
    raise ValueError(
        f"crop {tuple(crop)} does not fit encoder {spec.name!r}: every side must be a multiple of "
        f"{spec.crop_multiple} voxels; the nearest is {nearest}"
    )
