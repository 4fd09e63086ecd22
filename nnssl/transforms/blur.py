"""Gaussian blur of volumes (N, C, X, Y, Z), each sample with its own standard deviation per axis; any device.

The kernel is MONAI's (integrated over voxels, cut at int(4 sigma + 0.5)). Beyond the border the border voxel repeats:
the reference pads [-1, 1] data with 0, mid-grey, which pulls every border towards grey.
"""

import math
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

_PIECE = 16  # output voxels per product on a CPU


def gaussian_smooth(volumes: Tensor, sigma: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Blur each sample.

    A CPU convolves X and Y and multiplies along Z, sample by sample; a GPU multiplies, all samples at once.

    Args:
        volumes: (N, C, X, Y, Z), floating point.
        sigma: (N, 3) in voxels, above 0.
        out: takes the result and may be `volumes`; it is contiguous.
    """
    deviations = sigma.tolist()  # a few numbers, which Python is through with before PyTorch has begun
    out = result_like(volumes, out)
    if volumes.device.type != "cpu":
        return out.copy_(_blur_by_products(volumes, deviations))
    for sample, (first, second, third) in enumerate(deviations):
        for channel in range(volumes.shape[1]):
            plane = _blur_plane(volumes[sample, channel].contiguous(), first, second)
            _blur_depth(plane, third, out=out[sample, channel])
    return out


def result_like(volumes: Tensor, out: Tensor | None) -> Tensor:
    """Where a transform writes its result: `out`, or a new contiguous tensor of the same shape."""
    return torch.empty_like(volumes, memory_format=torch.contiguous_format) if out is None else out


def _blur_plane(volume: Tensor, first: float, second: float) -> Tensor:
    """(X, Y, Z) blurred along X and Y. Z counts as channels: their convolution one by one is a CPU's fastest kernel."""
    depth, along_x, along_y = volume.shape[2], torch.from_numpy(_kernel(first)), torch.from_numpy(_kernel(second))
    reach_x, reach_y = len(along_x) // 2, len(along_y) // 2
    planes = F.pad(volume[None].permute(0, 3, 1, 2), (reach_y, reach_y, reach_x, reach_x), mode="replicate")
    planes = F.conv2d(planes, along_x.to(volume)[:, None].expand(depth, 1, -1, 1), groups=depth)
    planes = F.conv2d(planes, along_y.to(volume).expand(depth, 1, 1, -1), groups=depth)
    return planes[0].permute(1, 2, 0)


def _blur_depth(volume: Tensor, sigma: float, *, out: Tensor) -> None:
    """(X, Y, Z) blurred along Z: products with pieces of a banded matrix that leave out most of its zeros."""
    side, kernel = volume.shape[2], _kernel(sigma)
    matrix, reach = torch.from_numpy(_banded(kernel, side)).to(volume).T, len(kernel) // 2
    rows, blurred = volume.reshape(-1, side), out.view(-1, side)
    for start in range(0, side, _PIECE):
        end, low, high = start + _PIECE, max(0, start - reach), start + _PIECE + reach
        torch.mm(rows[:, low:high], matrix[low:high, start:end], out=blurred[:, start:end])


def _blur_by_products(volumes: Tensor, deviations: list[list[float]]) -> Tensor:
    """Every axis by a product with its whole banded matrix: little work for a GPU, and all samples at once."""
    for axis in range(3):
        side = volumes.shape[axis + 2]
        matrices = torch.from_numpy(np.stack([_banded(_kernel(row[axis]), side) for row in deviations])).to(volumes)
        rows = volumes.movedim(axis + 2, -1)
        blurred = rows.flatten(1, -2) @ matrices.mT
        volumes = blurred.view(rows.shape).movedim(-1, axis + 2)
    return volumes


def _kernel(sigma: float) -> NDArray[np.float32]:
    """Weights of a Gaussian integrated over voxels, 2 * tail + 1 of them."""
    tail = max(1, int(4 * sigma + 0.5))
    edges = [math.erf((k - 0.5) / (sigma * 2**0.5)) for k in range(-tail, tail + 2)]
    return np.array([0.5 * (right - left) for left, right in pairwise(edges)], np.float32)


def _banded(kernel: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """(side, side) matrix whose rows hold the kernel, centred on the diagonal; the rest of it goes to the border."""
    taps = len(kernel)
    reach, wide = taps // 2, side + taps - 1  # voxels of the axis with its continuation
    skewed = np.zeros((side, wide + 1), np.float32)
    skewed[:, :taps] = kernel
    weights = skewed.reshape(-1)[: side * wide].reshape(side, wide)  # each row starts one voxel further right
    matrix = weights[:, reach : reach + side]
    matrix[:, 0] += weights[:, :reach].sum(1)
    matrix[:, -1] += weights[:, reach + side :].sum(1)
    return matrix
