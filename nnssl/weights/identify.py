"""Which encoder a set of tensors belongs to, told from their names and shapes."""

import re
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from nnssl.encoders import ENCODERS, build_encoder, encoder_spec
from nnssl.encoders.base import Encoder, EncoderSpec, IntensityRange
from nnssl.encoders.vit import ViTShape
from nnssl.weights.encoder_file import Weights

Crop = tuple[int, int, int]
BLOCK = re.compile(r"blocks\.\d+\.")


@dataclass(frozen=True)
class Identity:
    """What a weight file holds: all that is needed to build its encoder."""

    encoder: str  # a name of ENCODERS
    native_crop: Crop  # voxels, X Y Z
    options: dict[str, Any] = field(default_factory=dict)  # what differs from the line of ENCODERS
    intensity: IntensityRange | None = None  # None: the file does not say, the encoder's preset holds

    def spec(self, intensity: IntensityRange | None = None) -> EncoderSpec:
        """Facts about the encoder; `intensity` replaces what the file says."""
        intensity = intensity or self.intensity
        return encoder_spec(self.encoder, self.native_crop, intensity=intensity, options=self.options)

    def build(self) -> Encoder:
        """An encoder that the file fits, with fresh weights."""
        return build_encoder(self.encoder, native_crop=self.native_crop, intensity=self.intensity, options=self.options)


@dataclass(frozen=True)
class FoundViT:
    """A vision transformer as its tensors show it."""

    dim: int
    depth: int
    patch: int  # voxels
    cells: int  # entries of the position table without the class token

    @property
    def name(self) -> str | None:
        """Its name in the table of encoders, or None."""
        for name, shape in ENCODERS.items():
            if isinstance(shape, ViTShape) and (shape.dim, shape.depth, shape.patch) == self._size:
                return name
        return None

    @property
    def grid(self) -> Crop | None:
        """The position table as a cube, or None where its entries do not fill one."""
        side = round(self.cells ** (1 / 3))
        return (side, side, side) if side**3 == self.cells else None

    @property
    def _size(self) -> tuple[int, int, int]:
        return self.dim, self.depth, self.patch

    def __str__(self) -> str:
        return f"{self.name or 'ViT'} (dim {self.dim}, depth {self.depth}, patch {self.patch})"


def find_vit(tensors: dict[str, Tensor]) -> FoundViT:
    """Sizes of the vision transformer that the tensors belong to."""
    missing = [name for name in ("patch_embed.proj.weight", "pos_embed") if name not in tensors]
    if missing:
        raise ValueError(f"the weights hold no vision transformer: {' and '.join(missing)} missing")
    kernel = tensors["patch_embed.proj.weight"]
    if kernel.ndim != 5:
        raise ValueError(
            f"the weights hold a ViT whose patch kernel has shape {tuple(kernel.shape)}; "
            "expected (dim, 1, patch, patch, patch) of a 3D encoder"
        )
    table = tensors["pos_embed"]
    if table.ndim != 3:
        raise ValueError(f"pos_embed has shape {tuple(table.shape)}; expected (1, 1 + positions, dim)")
    blocks = [int(name.split(".")[1]) for name in tensors if BLOCK.match(name)]
    return FoundViT(kernel.shape[0], max(blocks, default=-1) + 1, kernel.shape[-1], table.shape[1] - 1)


def infer_vit(tensors: dict[str, Tensor]) -> tuple[str, Crop]:
    """(encoder name, native crop in voxels) of weights without a header; native crops of other packages are cubes."""
    found = find_vit(tensors)
    if found.name is None:
        raise ValueError(f"the weights hold a {found}, which is none of the known encoders: {', '.join(ENCODERS)}")
    if found.grid is None:
        raise ValueError(
            f"the weights hold a {found} with {found.cells} positions, which fill no cube; "
            "only files of nnssl may have another native crop"
        )
    x, y, z = (cells * found.patch for cells in found.grid)
    return found.name, (x, y, z)


def identify(weights: Weights) -> Identity:
    """The encoder of a weight file: what its header says, else what its tensors show."""
    header = weights.header
    if header is not None:
        return Identity(header.encoder, header.native_crop, header.encoder_options, header.intensity)
    return Identity(*infer_vit(weights.tensors))
