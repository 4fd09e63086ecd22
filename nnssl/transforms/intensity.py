"""Intensity transforms with given parameters: batched, any device, volumes (N, C, X, Y, Z) stored in [0, 1].

Each function returns new volumes and does not clip; the numbers are those of the MONAI transforms that 3DINO uses
(`random_intensity` draws the parameters). One parameter row belongs to one sample.
"""

import torch
from torch import Tensor

GAMMA_EPS = 1e-7  # MONAI
Shape = tuple[int, int, int]


def gamma_contrast(volumes: Tensor, gamma: Tensor) -> Tensor:
    """Raise intensities, scaled by each sample's own range, to the power gamma (N,); 1 = unchanged."""
    low, high = _range(volumes)
    span = high - low
    scaled = (volumes - low).mul_(1 / (span + GAMMA_EPS))
    return scaled.log_().mul_(_per_sample(gamma, volumes)).exp_().mul_(span).add_(low)  # a third faster than pow_


def gaussian_noise(volumes: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """Add noise of standard deviation sigma (N,); the generator must live on the volumes' device."""
    noise = torch.randn(volumes.shape, generator=generator, device=volumes.device, dtype=volumes.dtype)
    return volumes + noise.mul_(_per_sample(sigma, volumes))


def histogram_shift(volumes: Tensor, control_points: Tensor) -> Tensor:
    """Map intensities piecewise linearly within each sample's own range.

    Args:
        volumes: constant samples stay as they are.
        control_points: (N, P >= 2) ascending in [0, 1]; the values at P equally spaced intensities of the range.
    """
    low, high = _range(volumes)
    points = control_points.to(volumes)
    edges = low.flatten(1) + (high - low).flatten(1) * torch.linspace(0, 1, points.shape[1]).to(volumes)
    edges[:, -1:] = high.flatten(1)
    slopes = points.diff(dim=1) * (points.shape[1] - 1)
    start = low.flatten(1) + (high - low).flatten(1) * points[:, :1] - (slopes * edges[:, :-1]).sum(1, keepdim=True)
    shifted = _per_sample(start[:, 0], volumes).expand_as(volumes).clone()
    part = torch.empty_like(volumes)
    for k in range(slopes.shape[1]):  # a sum of ramps: no look-up per voxel, 5 times as fast on a CPU
        lower, upper, slope = (_per_sample(one, volumes) for one in (edges[:, k], edges[:, k + 1], slopes[:, k]))
        torch.minimum(torch.maximum(volumes, lower, out=part), upper, out=part)
        shifted.addcmul_(part, slope)
    return shifted


def gaussian_smooth(volumes: Tensor, sigma: Tensor) -> Tensor:
    """Blur each sample with its own standard deviation per axis.

    The kernel is MONAI's (integrated over voxels, cut at int(4 sigma + 0.5)). Beyond the border the border voxel
    repeats: the reference pads [-1, 1] data with 0, mid-grey, which pulls every border towards grey.
    Each axis is a product with a banded matrix. A CPU takes it in pieces of 32 output voxels, which skips most of the
    zeros; a GPU in one. At 96^3 on one core that is 3 to 4 times as fast as MONAI's convolutions.

    Args:
        sigma: (N, 3) in voxels, above 0.
    """
    samples, channels, x, y, z = volumes.shape
    (along_x, along_y, along_z), reach = _blur_matrices(sigma, (x, y, z), volumes)
    first, second = (torch.empty_like(volumes, memory_format=torch.contiguous_format) for _ in range(2))
    _blur_rows(along_x, volumes.reshape(samples, channels, x, -1), reach, out=first.view(samples, channels, x, -1))
    _blur_rows(along_y, first.view(samples, -1, y, z), reach, out=second.view(samples, -1, y, z))
    _blur_columns(along_z, second.view(samples, -1, z), reach, out=first.view(samples, -1, z))
    return first


def gaussian_sharpen(volumes: Tensor, sigma: tuple[Tensor, Tensor], alpha: Tensor) -> Tensor:
    """b1 + alpha * (b1 - b2): b1 blurred with sigma[0], b2 = b1 blurred with sigma[1] (each (N, 3)), alpha (N,).

    Leaves [0, 1] at edges, by far for the reference's alpha of 10 to 30.
    """
    once = gaussian_smooth(volumes, sigma[0])
    twice = gaussian_smooth(once, sigma[1])
    return torch.lerp(twice, once, 1 + _per_sample(alpha, volumes))


def gibbs_noise(volumes: Tensor, alpha: Tensor) -> Tensor:
    """Keep a ball of the k-space of radius (1 - alpha) * longest side / sqrt(2); alpha (N,), 0 = nearly unchanged.

    MONAI centres the ball half a sample beside the zero frequency of even sides and drops the imaginary part of the
    result; the real transform of the symmetrised ball gives the same numbers in half the work.
    """
    sides = volumes.shape[2:]
    radius = (1 - alpha.to(volumes.device, torch.float64)) * max(sides) * 0.5**0.5
    inside = _distance_squared(sides, volumes.device, mirrored=False)
    mirrored = _distance_squared(sides, volumes.device, mirrored=True)
    limit = _per_sample(radius.square().float(), volumes)[:, 0]
    keep = ((inside <= limit).to(volumes.dtype) + (mirrored <= limit).to(volumes.dtype)).mul_(0.5)
    spectrum = torch.fft.rfftn(volumes, dim=(2, 3, 4)).mul_(keep[:, None])
    return torch.fft.irfftn(spectrum, s=sides, dim=(2, 3, 4))


def _range(volumes: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest intensity of each sample, broadcastable to the volumes."""
    flat = volumes.flatten(1)  # two passes: aminmax along a dimension is 20 times slower
    return _per_sample(flat.amin(1), volumes), _per_sample(flat.amax(1), volumes)


def _per_sample(values: Tensor, volumes: Tensor) -> Tensor:
    return values.to(volumes).view(-1, *[1] * (volumes.ndim - 1))


def _blur_rows(matrix: Tensor, stack: Tensor, reach: int, *, out: Tensor) -> None:
    """(N, S, S) banded matrices times every (S, B) of a stack (N, A, S, B)."""
    stack, out = stack.flatten(0, 1), out.flatten(0, 1)
    times = len(stack) // len(matrix)
    for rows, near in _windows(matrix, reach):
        torch.bmm(matrix[:, rows, near].repeat_interleave(times, 0), stack[:, near], out=out[:, rows])


def _blur_columns(matrix: Tensor, rows: Tensor, reach: int, *, out: Tensor) -> None:
    """(N, S, S) banded matrices times every row of (N, A, S)."""
    for columns, near in _windows(matrix, reach):
        torch.bmm(rows[..., near], matrix[:, columns, near].mT, out=out[..., columns])


def _windows(matrix: Tensor, reach: int) -> list[tuple[slice, slice]]:
    """Rows of a banded matrix, in pieces that pay on its device, and the columns that are not zero there."""
    side = matrix.shape[1]
    step = 32 if matrix.device.type == "cpu" else side
    starts = range(0, side, step)
    return [(slice(i, i + step), slice(max(0, i - reach), min(side, i + step + reach))) for i in starts]


def _blur_matrices(sigma: Tensor, sides: Shape, like: Tensor) -> tuple[list[Tensor], int]:
    """(N, side, side) matrix that blurs each axis, and the reach of the kernels in voxels.

    Weights beyond the border go to the border voxel.
    """
    sigma = sigma.to("cpu", torch.float64)[..., None]  # small; on the CPU its size needs no device sync
    tail = (4 * sigma + 0.5).floor().clamp_(min=1)
    reach = int(tail.max())
    taps = torch.arange(-reach - 1, reach + 2)
    scale = 0.5**0.5 / sigma
    kernels = 0.5 * (torch.erf(scale * (taps + 0.5)) - torch.erf(scale * (taps - 0.5))) * (taps.abs() <= tail)
    return [_banded(kernels[:, axis].float(), side).to(like) for axis, side in enumerate(sides)], reach


def _banded(kernels: Tensor, side: int) -> Tensor:
    """(N, side, side) matrices of kernels (N, 2 * reach + 3), whose outermost weights are 0."""
    reach = kernels.shape[1] // 2 - 1
    offset = torch.arange(-reach, side + reach)[None] - torch.arange(side)[:, None]
    weights = kernels[:, offset.clamp_(-reach - 1, reach + 1) + reach + 1]
    matrix = weights[..., reach : reach + side].clone()
    matrix[..., 0] += weights[..., :reach].sum(-1)
    matrix[..., -1] += weights[..., reach + side :].sum(-1)
    return matrix


def _distance_squared(sides: torch.Size, device: torch.device, *, mirrored: bool) -> Tensor:
    """(X, Y, Z // 2 + 1) squared distance of each real-FFT frequency (or its negative) from MONAI's centre."""
    axes = []
    for side in sides:
        frequency = torch.arange(side, device=device)
        if mirrored:
            frequency = (-frequency) % side
        axes.append((((frequency + side // 2) % side) - (side - 1) / 2).square())
    half = sides[2] // 2 + 1
    return axes[0][:, None, None] + axes[1][:, None] + axes[2][:half]
