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

_PIECES = (8, 8, 16)  # voxels per product along X, Y, Z on a CPU: more meet more zeros, fewer make more products
_SLAB = 24  # voxels along X that are blurred along Y and Z while they lie in the cache


def gaussian_smooth(volumes: Tensor, sigma: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Blur each sample.

    A CPU multiplies with pieces of each axis' banded matrix, sample by sample; a GPU with all of it and all samples.

    Args:
        volumes: (N, C, X, Y, Z), floating point.
        sigma: (N, 3) in voxels, above 0.
        out: takes the result and may be `volumes`; it is contiguous.
    """
    deviations = sigma.tolist()  # a few numbers, which Python is through with before PyTorch has begun
    if volumes.device.type != "cpu":
        return result_like(volumes, out).copy_(_blur_by_products(volumes, deviations))
    if volumes.dtype not in (torch.float32, torch.float64):
        return result_like(volumes, out).copy_(gaussian_smooth(volumes.float(), sigma))
    out = result_like(volumes, out)
    for volume, place, sigmas in zip(volumes.detach(), out, deviations, strict=True):
        for channel, result in zip(volume.contiguous().numpy(), place.numpy(), strict=True):
            _blur_by_pieces(channel, sigmas, out=result)
    return out


def result_like(volumes: Tensor, out: Tensor | None) -> Tensor:
    """Where a transform writes its result: `out`, which must be contiguous, or a new tensor of the same shape."""
    if out is not None and not out.is_contiguous():
        raise ValueError(f"out of shape {tuple(out.shape)} and strides {out.stride()}: expected a contiguous tensor")
    return torch.empty_like(volumes, memory_format=torch.contiguous_format) if out is None else out


def _blur_by_pieces(volume: NDArray[np.floating], sigmas: list[float], *, out: NDArray[np.floating]) -> None:
    """(X, Y, Z) blurred. NumPy multiplies: twice as fast as PyTorch's products (MKL, on AMD) and convolutions."""
    axes = zip(sigmas, volume.shape, _PIECES, strict=True)
    along_x, along_y, along_z = (_bands(sigma, side, step, volume.dtype) for sigma, side, step in axes)
    along_z = [(band.T.copy(), near, piece) for band, near, piece in along_z]  # a view takes a quarter longer
    once, room = np.empty_like(volume), np.empty_like(volume[:_SLAB])
    for band, near, piece in along_x:
        np.matmul(band, _rows(volume[near]), out=_rows(once[piece]))
    for start in range(0, len(volume), _SLAB):
        slab, result = once[start : start + _SLAB], out[start : start + _SLAB]
        twice = room[: len(slab)]
        for band, near, piece in along_y:
            np.matmul(band, slab[:, near], out=twice[:, piece])
        for band, near, piece in along_z:
            np.matmul(_columns(twice)[:, near], band, out=_columns(result)[:, piece])


def _bands(sigma: float, side: int, step: int, kind: np.dtype) -> list[tuple[NDArray[np.floating], slice, slice]]:
    """The banded matrix of an axis in pieces: rows without most of their zeros, voxels they weigh, voxels they make."""
    kernel = _kernel(sigma)
    matrix, reach = _banded(kernel, side).astype(kind), len(kernel) // 2
    pieces = [slice(start, min(side, start + step)) for start in range(0, side, step)]
    nears = [slice(max(0, piece.start - reach), min(side, piece.stop + reach)) for piece in pieces]
    return [(matrix[piece, near], near, piece) for near, piece in zip(nears, pieces, strict=True)]


def _rows(volume: NDArray[np.floating]) -> NDArray[np.floating]:
    return volume.reshape(len(volume), -1)


def _columns(volume: NDArray[np.floating]) -> NDArray[np.floating]:
    return volume.reshape(-1, volume.shape[-1])


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
