"""How far a reconstructed volume is from the true one, over all voxels or over the hidden ones."""

import torch
from torch import Tensor
from torch.nn import functional as F

ERRORS = {"l2": F.mse_loss, "l1": F.l1_loss}
COUNT_EPS = 1e-5  # SMIT code; no hidden voxel gives 0 instead of NaN


def voxel_error(image: Tensor, target: Tensor, kind: str = "l2", *, hidden: Tensor | None = None) -> Tensor:
    """Mean squared ("l2") or absolute ("l1") difference per voxel.

    Args:
        image, target: (B, C, X, Y, Z).
        kind: a key of `ERRORS`.
        hidden: (B, 1, X, Y, Z) bool; only voxels that are True count (SimMIM). None: all voxels.

    Returns:
        Scalar, float32 (float64 stays), computed outside autocast.
    """
    with torch.autocast(image.device.type, enabled=False):
        precision = torch.promote_types(image.dtype, torch.float32)
        error = ERRORS[kind](image.to(precision), target.to(precision), reduction="none")
        if hidden is None:
            return error.mean()
        return (error * hidden).sum() / (hidden.sum() * image.shape[1] + COUNT_EPS)
