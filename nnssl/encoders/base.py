"""What every encoder is: facts about it (EncoderSpec), what it returns (Features), how it is called (Encoder)."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

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
        lowest, highest = self.encoder_range
        if not lowest < highest or not all(map(math.isfinite, (self.low, self.high, lowest, highest))):
            raise ValueError(f"intensity {self} mapped to {self.encoder_range}: finite bounds, the lower one first")
        if self.kind == "percentile" and not 0 <= self.low < self.high <= 100:
            raise ValueError(f"intensity {self}: percentiles lie between 0 and 100")

    def __str__(self) -> str:
        return f"{self.kind}:{self.low:g},{self.high:g}"


def to_encoder_range(volume: Tensor, encoder_range: tuple[float, float], *, out: Tensor | None = None) -> Tensor:
    """Map stored [0, 1] intensities (0 = background) to the range that the encoder was trained on.

    `out=volume` works in place.
    """
    low, high = encoder_range
    return torch.add(volume.new_full((), low), volume, alpha=high - low, out=out)


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
    family: str = "vit"  # "vit", "swin", "primus", "resenc"
    depth: int = 0  # blocks in the order of the data: what "the last N" and "1/4 of the depth" count
    token_stride: int = 0  # voxels per token of `Features.tokens` and of token masks; 0: strides[-1]
    token_channels: int = 0  # width of these tokens; 0: channels[-1]
    input_channels: int = 1  # image channels that enter together
    maskable: bool = True  # whether tokens can be hidden
    options: dict[str, Any] = field(
        default_factory=dict, hash=False
    )  # what differs from the table's line (JSON values)

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_stride", self.token_stride or self.strides[-1])
        object.__setattr__(self, "token_channels", self.token_channels or self.channels[-1])

    @property
    def is_pyramid(self) -> bool:
        """Whether there are maps of several resolutions."""
        return len(self.strides) > 1

    def token_grid(self, crop: Sequence[int]) -> tuple[int, int, int]:
        """Tokens along X, Y, Z of a crop in voxels."""
        x, y, z = (side // self.token_stride for side in crop)
        return x, y, z


class Features(NamedTuple):
    """What an encoder returns for volumes (B, C, X, Y, Z)."""

    maps: list[Tensor]  # (B, channels[i], X/strides[i], Y/strides[i], Z/strides[i])
    summary: Tensor  # (B, channels[-1]): class token, or mean of the last map's normalised cells
    tokens: dict[str, Tensor]  # (B, N, token_channels) in raster order on the token grid; see `Encoder.forward`


class Encoder(nn.Module, ABC):
    """A network from volumes to features."""

    spec: EncoderSpec

    @property
    def blocks_in_order(self) -> list[nn.Module]:
        """All blocks in the order of the data: those of `self.blocks`, unless an encoder says otherwise."""
        return list(self.get_submodule("blocks").children())

    @abstractmethod
    def forward(self, volume: Tensor, token_mask: Tensor | None = None) -> Features:
        """Encode volumes.

        Args:
            volume: (B, spec.input_channels, X, Y, Z) in `spec.intensity.encoder_range`; sides are multiples of
                `spec.crop_multiple`.
            token_mask: (B, N) bool in raster order (Z fastest) on the token grid, True = hidden from the encoder.

        Returns:
            Features whose `tokens` hold "patch" (the deepest tokens on the token grid, normalised) and "distill"
            (what SMIT distils: a Swin's merge output of the third stage, elsewhere the same as "patch").
        """


class TokenEncoder(Encoder):
    """A plain transformer: one grid of tokens whose blocks can be tapped."""

    @abstractmethod
    def layer_maps(self, volume: Tensor, blocks: Sequence[int], norm: bool = True) -> list[Tensor]:
        """Maps (B, channels[0], X/p, Y/p, Z/p) after the given blocks (0-based, ascending), finally normed or not."""


def check_line(line: Any) -> None:
    """Raise a ValueError unless every whole number of a line of ENCODERS is 1 or more."""
    for entry in fields(line):
        value = getattr(line, entry.name)
        numbers = value if isinstance(value, tuple) else (value,)
        if any(type(number) is int and number < 1 for number in numbers):
            raise ValueError(f"{type(line).__name__} with {entry.name} {value}: must be 1 or more")


def check_crop(spec: EncoderSpec, crop: tuple[int, ...]) -> None:
    """Raise a ValueError that names the nearest allowed crop unless every side fits the encoder."""
    if len(crop) == 3 and all(side > 0 and side % spec.crop_multiple == 0 for side in crop):
        return
    nearest = tuple(max(1, round(side / spec.crop_multiple)) * spec.crop_multiple for side in crop)
    raise ValueError(
        f"crop {tuple(crop)} does not fit encoder {spec.name!r}: every side must be a multiple of "
        f"{spec.crop_multiple} voxels; the nearest is {nearest}"
    )


def check_volume(spec: EncoderSpec, volume: Tensor) -> None:
    """Raise a ValueError unless the volume (B, C, X, Y, Z) has the encoder's channels and sides."""
    channels = spec.input_channels
    if volume.ndim != 5 or volume.shape[1] != channels:
        raise ValueError(
            f"encoder {spec.name!r} reads volumes (B, {channels}, X, Y, Z), got shape {tuple(volume.shape)}"
            + ("; encode one channel at a time" if channels == 1 else "")
        )
    check_crop(spec, tuple(volume.shape[2:]))


def check_token_mask(spec: EncoderSpec, token_mask: Tensor, volume: Tensor) -> None:
    """Raise a ValueError unless the mask has one bool per token of the volume (B, C, X, Y, Z)."""
    expected = (len(volume), math.prod(spec.token_grid(volume.shape[2:])))
    if token_mask.shape != expected or token_mask.dtype != torch.bool:
        raise ValueError(
            f"token mask of shape {tuple(token_mask.shape)} and type {token_mask.dtype} does not fit: "
            f"expected bool {expected}, one entry per token of {spec.token_stride} voxels a side"
        )
