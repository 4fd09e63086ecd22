"""Crop a scan to its nonzero box and mark what lies outside the body: nnU-Net's rule, without its slow hole filling."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label as connected_parts

OUTSIDE = -1  # nnU-Net's mark in label maps

Box = list[list[int]]  # [first, last + 1] per axis, as in nnU-Net's properties


def crop_to_nonzero(
    images: NDArray[np.float32], labels: NDArray[Any] | None
) -> tuple[NDArray[np.float32], NDArray[Any], Box]:
    """Images (C, X, Y, Z) and label map (1, X, Y, Z) within the box of nonzero voxels; the label map may be None.

    Background that is outside the filled nonzero mask becomes -1. Gives what nnU-Net's function of this name gives; an
    image of zeros only keeps its size.
    """
    nonzero = (images != 0).any(axis=0)
    box = _box(nonzero)
    place = tuple(slice(*ends) for ends in box)
    outside = _outside(nonzero[place])[None]
    images = images[(slice(None), *place)]
    if labels is None:
        return images, np.where(outside, np.int8(OUTSIDE), np.int8(0)), box
    labels = labels[(slice(None), *place)]
    labels[(labels == 0) & outside] = OUTSIDE
    return images, labels, box


def _box(mask: NDArray[np.bool_]) -> Box:
    box = []
    for axis in range(3):
        found = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append([int(found[0]), int(found[-1]) + 1] if len(found) else [0, mask.shape[axis]])
    return box


def _outside(nonzero: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Zero voxels that are connected, face to face, to the border of the box; other zero voxels are holes."""
    borders = [np.take(nonzero, end, axis=axis) for axis in range(3) for end in (0, -1)]
    if all(border.all() for border in borders):
        return np.zeros_like(nonzero)
    parts, _ = connected_parts(~nonzero)
    is_outside = np.zeros(parts.max() + 1, dtype=bool)
    for axis in range(3):
        is_outside[np.unique(np.take(parts, (0, -1), axis=axis))] = True
    is_outside[0] = False
    return is_outside[parts]
