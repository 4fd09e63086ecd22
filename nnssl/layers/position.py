"""Resampling of a learnt 3D table of position embeddings to another grid of tokens."""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

POSITION_RULES = ("scale_factor", "scale_factor_every_axis", "size")
SCALE_FACTOR_OFFSET = 0.1  # voxels that DINO adds to the wanted side before dividing by the stored side


def resample_positions(table: Tensor, stored: Sequence[int], grid: Sequence[int], *, rule: str) -> Tensor:
    """Trilinear resampling of a table of position embeddings, the same on every device.

    Output cell i of an axis reads the stored cells around `(i + 0.5) / s - 0.5` (edges repeated, no smoothing).

    Args:
        table: (1, X*Y*Z, dim) in raster order (Z fastest), without the class token's entry.
        stored: cells per axis (X, Y, Z) of `table`.
        grid: cells per axis wanted.
        rule: "scale_factor": s = (wanted + 0.1) / stored, and axes whose lengths agree are copied (3DINO's
            backbone on a CPU; our default). "scale_factor_every_axis": the same, but axes whose lengths agree
            are resampled too unless all three agree (PyTorch's CUDA kernel). "size": s = wanted / stored
            (3DINO's ViT-Adapter).

    Returns:
        (1, product of `grid`, dim) in the dtype of `table`; computed in float32. `table` itself where nothing changes.
    """
    if rule not in POSITION_RULES:
        raise ValueError(f"position rule {rule!r} is unknown; known: {', '.join(POSITION_RULES)}")
    if tuple(stored) == tuple(grid):
        return table
    cells = table.reshape(*stored, table.shape[-1]).float()
    with full_precision(table.device):
        for axis, (old, new) in enumerate(zip(stored, grid, strict=True)):
            if old == new and rule != "scale_factor_every_axis":
                continue
            factor = (new if rule == "size" else new + SCALE_FACTOR_OFFSET) / old
            matrix = interpolation_matrix(old, new, factor, device=table.device)
            cells = torch.tensordot(matrix, cells.movedim(axis, 0), dims=1).movedim(0, axis)
    return cells.reshape(1, -1, table.shape[-1]).to(table.dtype)


def interpolation_matrix(old: int, new: int, factor: float, *, device: torch.device) -> Tensor:
    """Linear interpolation along one axis as a (new, old) float32 matrix; every row sums to 1.

    Args:
        old, new: cells before and after.
        factor: new cells per old cell, > 0; need not equal new / old.
    """
    centres = torch.arange(new, device=device, dtype=torch.float32)
    source = ((centres + 0.5) / factor - 0.5).clamp(0, old - 1)
    lower = source.floor()
    upper = (lower + 1).clamp(max=old - 1)
    weight = (source - lower)[:, None]
    columns = torch.arange(old, device=device, dtype=torch.float32)
    return (lower[:, None] == columns) * (1 - weight) + (upper[:, None] == columns) * weight


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Switch autocast off; devices that have none (meta, in older versions mps) refuse even that."""
    try:
        return torch.autocast(device.type, enabled=False)
    except RuntimeError:
        return contextlib.nullcontext()
