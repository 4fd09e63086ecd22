"""A file's table of positions for an encoder of another native crop."""

import math

import torch

from nnssl.encoders.base import Encoder
from nnssl.encoders.primus import Primus
from nnssl.encoders.vit import VisionTransformer
from nnssl.layers.position import resample_positions
from nnssl.weights.layout import Crop
from nnssl.weights.sizes import FAMILIES, cube
from nnssl.weights.unwrap import Tensors


def fit_positions(encoder: Encoder, tensors: Tensors, native_crop: Crop | None) -> tuple[Tensors, tuple[str, ...]]:
    """Resample the position table where the file's native grid is another one than the encoder's.

    ViT: 3DINO's scale-factor rule; Primus: by size, as nnU-Net's fine-tuning does; others have no such table.

    Args:
        native_crop: of the file in voxels, where it says so; else its table must be a cube, or of the encoder's grid.

    Returns:
        The tensors, and what was done: nothing or one line.
    """
    if isinstance(encoder, VisionTransformer):
        name, extra, axes, rule = "pos_embed", 1, (0, 1, 2), "scale_factor"
    elif isinstance(encoder, Primus):
        name, extra, axes, rule = "eva.pos_embed", 0, encoder.axes, "size"
    else:
        return tensors, ()
    stored = _stored_grid(encoder, tensors, native_crop)
    if stored == encoder.native_grid:
        return tensors, ()
    before, after = ([grid[axis] for axis in axes] for grid in (stored, encoder.native_grid))
    table = tensors[name]
    patches = resample_positions(table[:, extra:].float(), before, after, rule=rule)
    fitted = torch.cat([table[:, :extra].float(), patches], dim=1).to(table.dtype)
    return {**tensors, name: fitted}, (
        f"{name} resampled from {_times(stored)} to {_times(encoder.native_grid)} tokens",
    )


def _stored_grid(encoder: VisionTransformer | Primus, tensors: Tensors, native_crop: Crop | None) -> tuple[int, ...]:
    sizes = FAMILIES[encoder.spec.family].measure(tensors)
    if native_crop is not None:
        grid = tuple(side // sizes.patch for side in native_crop)
        if math.prod(grid) == sizes.cells:
            return grid
        raise ValueError(f"the file's native crop {native_crop} contradicts {sizes.cells} positions")
    found = cube(sizes.cells)
    if found is None and sizes.cells != math.prod(encoder.native_grid):
        raise ValueError(
            f"the weights hold {sizes.cells} positions, which fill no cube; expected a cube or "
            f"{_times(encoder.native_grid)}"
        )
    return found or encoder.native_grid


def _times(grid: tuple[int, ...]) -> str:
    return "x".join(map(str, grid))
