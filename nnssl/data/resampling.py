"""Resampling as a product of small matrices: one (new side x old side) matrix per axis, applied by matrix products.

Interpolation on a grid is linear and separable, so that the matrix of an axis holds spline prefilter, boundary rule and
smoothing at once, and BLAS does the rest. Images: cubic splines, to rounding what nnU-Net's default
(`resample_data_or_seg_to_shape`, order 3) computes in double precision. Label maps: the linear vote of nnU-Net's
`resample_torch_fornnunet`, label by label, each within its own bounding box.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import find_objects, gaussian_filter1d, zoom
from torch import Tensor

CUBIC, LINEAR = 3, 1
_TIE = 1e-5  # votes closer than this are a tie


def resample_image(
    image: NDArray[np.float32], shape: Sequence[int], *, order: int = CUBIC, antialias: bool = False
) -> NDArray[np.float32]:
    """One channel (X, Y, Z) on a grid of `shape` voxels over the same extent; nothing leaves the range of the input.

    Args:
        image: float32.
        shape: voxels per axis.
        order: of the spline, 0 to 5.
        antialias: smooth an axis that shrinks by a factor f with a Gaussian of sigma (f - 1) / 2 voxels first, as
            scikit-image's `resize(anti_aliasing=True)` does; nnU-Net's resampling does not.
    """
    if image.shape == tuple(shape):
        return image
    volume = torch.from_numpy(np.ascontiguousarray(image))
    low, high = volume.aminmax()
    for axis in sorted(range(3), key=lambda axis: shape[axis] / image.shape[axis]):  # the one that shrinks most first
        volume = _along(volume, axis_matrix(image.shape[axis], shape[axis], order, antialias), axis)
    return volume.clamp_(low, high).numpy()


def resample_labels(labels: NDArray[np.integer], shape: Sequence[int]) -> NDArray[np.int16]:
    """A label map (X, Y, Z) on a grid of `shape` voxels: the label with the largest linear vote, of equals the lowest.

    Args:
        labels: -1 (outside, as nnU-Net marks it) or more.
        shape: voxels per axis.
    """
    if labels.shape == tuple(shape):
        return labels.astype(np.int16)
    matrices = [axis_matrix(old, new, LINEAR, False) for old, new in zip(labels.shape, shape, strict=True)]
    winner = torch.zeros(tuple(shape), dtype=torch.int16)
    most, total = torch.zeros(tuple(shape)), torch.zeros(tuple(shape))
    for number, box in enumerate(find_objects(labels.astype(np.int32) + 2)):
        if box is None or number == 1:  # the background's vote is what the others leave
            continue
        votes = torch.from_numpy((labels[box] == number - 1).astype(np.float32))
        reached = []
        for axis, matrix in enumerate(matrices):
            part = matrix[:, box[axis]]
            rows = torch.nonzero(part.any(dim=1))[:, 0]
            if not len(rows):
                break
            reached.append(slice(int(rows[0]), int(rows[-1]) + 1))
            votes = _along(votes, part[reached[-1]], axis)
        if len(reached) < 3:
            continue
        place = tuple(reached)
        better = votes > most[place] + _TIE
        winner[place][better] = number - 1
        most[place] = torch.where(better, votes, most[place])
        total[place] += votes
    winner[most <= total.neg_().add_(1).add_(_TIE)] = 0  # the background's vote, in the memory of the others'
    return winner.numpy()


@lru_cache(maxsize=96)
def axis_matrix(old: int, new: int, order: int, antialias: bool) -> Tensor:
    """(new, old) float32: what new voxels of an axis take from old ones; edges continued, half-voxel centres."""
    unit = np.eye(old)
    if antialias and new < old:
        unit = gaussian_filter1d(unit, (old / new - 1) / 2, axis=0, mode="nearest")
    matrix = zoom(unit, (new / old, 1), order=order, mode="nearest", grid_mode=True)
    return torch.from_numpy(matrix.astype(np.float32))


def _along(volume: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """`matrix` applied to one axis of (X, Y, Z)."""
    new, old = matrix.shape
    if new == old and torch.equal(matrix, torch.eye(old)):
        return volume
    first, second, third = volume.shape
    if axis == 0:
        return (matrix @ volume.reshape(old, -1)).reshape(new, second, third)
    if axis == 2:
        return (volume.reshape(-1, old) @ matrix.T).reshape(first, second, new)
    return torch.bmm(matrix.expand(first, new, old), volume)
