"""Sizes of an encoder as its tensors show them, one reader per family of encoders."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from nnssl.encoders.primus import PrimusShape
from nnssl.encoders.resenc import ResEncShape
from nnssl.encoders.swin import STAGES, SwinShape
from nnssl.encoders.vit import ViTShape

Crop = tuple[int, int, int]
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    """What the shapes of an encoder's tensors tell; the fields are those of the family's line in ENCODERS."""

    input_channels: int

    @property
    def values(self) -> dict[str, Any]:
        """Fields of the line as JSON values."""
        found = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in _NO_OPTION}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}

    def __str__(self) -> str:
        words = {key: value for key, value in self.values.items() if key != "input_channels"}
        return ", ".join(f"{key} {value}" for key, value in words.items())


@dataclass(frozen=True)
class ViTSizes(Sizes):
    """A vision transformer; its number of heads shows in no shape."""

    dim: int
    depth: int
    patch: int  # voxels
    cells: int  # entries of the position table without the class token


@dataclass(frozen=True)
class SwinSizes(Sizes):
    """A Swin transformer."""

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    qkv_bias: bool
    patch_norm: bool


@dataclass(frozen=True)
class PrimusSizes(Sizes):
    """A Primus; its number of heads shows in no shape."""

    dim: int
    depth: int
    patch: int  # voxels
    cells: int  # entries of the position table
    layer_scale: float  # as it is initialised where the tensors have one, else 0
    attention_norm: bool


@dataclass(frozen=True)
class ResEncSizes(Sizes):
    """A residual encoder; its strides show in no shape."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]


_NO_OPTION = ("cells",)
HEADS_OF = ("dim", "depth", "patch")


@dataclass(frozen=True)
class Family:
    """How the tensors of one family of encoders are known and measured."""

    title: str  # for messages
    line: type  # of the table of encoders
    mark: str  # a name that no other family has
    kernel: str  # the first convolution, whose second axis are the image's channels
    measure: Callable[[Tensors], Any]
    heads_of: tuple[str, ...] = ()  # fields that tell the heads by the table, where no shape shows them


def cube(cells: int) -> Crop | None:
    """The sides of a cubic grid of so many cells, or None."""
    side = round(cells ** (1 / 3))
    return (side, side, side) if side**3 == cells else None


def family_of(tensors: Tensors) -> str:
    """The family whose names the tensors have: a key of `FAMILIES`."""
    for name, family in FAMILIES.items():
        if family.mark in tensors and family.kernel in tensors:
            return name
    marks = "; ".join(f"{family.title}: {family.kernel} and {family.mark}" for family in FAMILIES.values())
    raise ValueError(f"the weights hold none of the known encoders ({marks})")


def find_vit(tensors: Tensors) -> ViTSizes:
    """Sizes of the vision transformer that the tensors belong to."""
    kernel = _kernel(tensors, "vit")
    cells = _positions(tensors, "pos_embed") - 1
    return ViTSizes(kernel.shape[1], kernel.shape[0], _count(tensors, r"blocks\.(\d+)\."), kernel.shape[-1], cells)


def find_primus(tensors: Tensors) -> PrimusSizes:
    """Sizes of the Primus that the tensors belong to."""
    kernel = _kernel(tensors, "primus")
    cells = _positions(tensors, "eva.pos_embed")
    depth = _count(tensors, r"eva\.blocks\.(\d+)\.")
    block = "eva.blocks.0."
    scale = PrimusShape.layer_scale if f"{block}gamma_1" in tensors else 0.0
    norm = f"{block}attn.norm.weight" in tensors
    return PrimusSizes(kernel.shape[1], kernel.shape[0], depth, kernel.shape[-1], cells, scale, norm)


def find_swin(tensors: Tensors) -> SwinSizes:
    """Sizes of the Swin transformer that the tensors belong to; heads and window are those of its bias tables."""
    kernel = _kernel(tensors, "swin")
    tables = [f"layers.{stage}.blocks.0.attn.relative_position_bias_table" for stage in range(STAGES)]
    missing = [name for name in tables if name not in tensors or tensors[name].ndim != 2]
    if missing or f"layers.{STAGES}.blocks.0.attn.qkv.weight" in tensors:
        raise ValueError(f"the weights hold a Swin with other than {STAGES} stages ({', '.join(missing) or 'more'})")
    rows = tensors[tables[0]].shape[0]
    side = cube(rows)
    if side is None or side[0] % 2 == 0:
        raise ValueError(f"{tables[0]} has {rows} rows; a window of w has (2w - 1)^3, such as 343 (4) and 2197 (7)")
    return SwinSizes(
        kernel.shape[1],
        kernel.shape[0],
        tuple(_count(tensors, rf"layers\.{stage}\.blocks\.(\d+)\.") for stage in range(STAGES)),
        tuple(tensors[name].shape[1] for name in tables),
        (side[0] + 1) // 2,
        "layers.0.blocks.0.attn.qkv.bias" in tensors,
        "patch_embed.norm.weight" in tensors,
    )


def find_resenc(tensors: Tensors) -> ResEncSizes:
    """Sizes of the residual encoder that the tensors belong to."""
    kernel = _kernel(tensors, "resenc")
    stages = range(_count(tensors, r"stages\.(\d+)\."))
    firsts = [f"stages.{stage}.blocks.0.conv1.conv.weight" for stage in stages]
    missing = [name for name in firsts if name not in tensors]
    if missing:
        raise ValueError(f"the weights hold no ResEnc with basic residual blocks: {', '.join(missing)} missing")
    return ResEncSizes(
        kernel.shape[1],
        tuple(tensors[name].shape[0] for name in firsts),
        tuple(_count(tensors, rf"stages\.{stage}\.blocks\.(\d+)\.") for stage in stages),
    )


def check_sizes(name: str, line: Mapping[str, Any], crop: Crop, sizes: Sizes) -> None:
    """Refuse an encoder that is not the one that the tensors belong to, before it is built.

    Args:
        name: of the encoder in ENCODERS.
        line: its line with the file's options, as JSON values.
        crop: its native crop in voxels.
    """
    shown = {key: value for key, value in sizes.values.items() if not isinstance(value, float)}
    wrong = [key for key, value in shown.items() if line.get(key) != value]
    if wrong:
        said, found = (", ".join(f"{key} {values.get(key)}" for key in wrong) for values in (line, shown))
        raise ValueError(f"the file names {name} with {said}, but its tensors show {found}")
    cells = getattr(sizes, "cells", None)
    if cells is not None and math.prod(side // line["patch"] for side in crop) != cells:
        raise ValueError(f"the file's native crop {crop} contradicts {cells} positions")


def _kernel(tensors: Tensors, family: str) -> Tensor:
    name, title = FAMILIES[family].kernel, FAMILIES[family].title
    if name not in tensors:
        raise ValueError(f"the weights hold no {title}: {name} missing")
    kernel = tensors[name]
    if kernel.ndim != 5 or len(set(kernel.shape[2:])) > 1 or not kernel.numel():
        raise ValueError(
            f"the weights hold a {title} whose {name} has shape {tuple(kernel.shape)}; "
            "expected (width, channels, side, side, side) of a 3D encoder"
        )
    return kernel


def _positions(tensors: Tensors, name: str) -> int:
    if name not in tensors or tensors[name].ndim != 3:
        found = tuple(tensors[name].shape) if name in tensors else "none"
        raise ValueError(f"{name} has shape {found}; expected (1, positions, dim)")
    return tensors[name].shape[1]


def _count(tensors: Tensors, pattern: str) -> int:
    """One more than the largest number at the place of the group, 0 without any.

    A few may be absent, and are then named as missing tensors; most may not, or a file could ask for any size.
    """
    found = {int(match.group(1)) for name in tensors if (match := re.match(pattern, name))}
    count = max(found, default=-1) + 1
    if count > 2 * len(found):
        place = pattern.replace(r"(\d+)", "N").replace("\\", "")
        raise ValueError(f"the weights hold {place}* up to N = {count - 1}, but only {len(found)} of them")
    return count


FAMILIES = {
    "vit": Family("ViT", ViTShape, "pos_embed", "patch_embed.proj.weight", find_vit, HEADS_OF),
    "swin": Family(
        "Swin", SwinShape, "layers.0.blocks.0.attn.relative_position_bias_table", "patch_embed.proj.weight", find_swin
    ),
    "primus": Family("Primus", PrimusShape, "eva.pos_embed", "down_projection.proj.weight", find_primus, HEADS_OF),
    "resenc": Family(
        "ResEnc", ResEncShape, "stages.0.blocks.0.conv1.conv.weight", "stem.convs.0.conv.weight", find_resenc
    ),
}
