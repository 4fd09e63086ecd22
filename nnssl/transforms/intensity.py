"""Intensity transforms with given parameters: batched, any device, volumes (N, C, X, Y, Z) stored in [0, 1].

None of them clips; the numbers are those of the MONAI transforms that 3DINO uses (`random_intensity` draws the
parameters). One parameter row belongs to one sample. Results are new volumes, or `out`, which may be the volumes.
"""

from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nnssl.transforms.blur import gaussian_smooth, result_like

GAMMA_EPS = 1e-7  # MONAI
_TINY = 1e-18  # stands in for 0, which has no logarithm; no power up to 2 of it is a slow, denormal number
_FLATTEST = 1e-6
_PIECE = 2**17  # voxels
Shape = tuple[int, int, int]


def gamma_contrast(volumes: Tensor, gamma: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Raise intensities, scaled by each sample's own range, to the power gamma (N,); 1 = unchanged."""
    low, high = _range(volumes)
    span = high - low
    changed = torch.sub(volumes, low, out=out).mul_(1 / (span + GAMMA_EPS)).clamp_min_(_TINY)
    return _power_(changed, _per_sample(gamma, volumes)).mul_(span).add_(low)


def gaussian_noise(volumes: Tensor, sigma: Tensor, seeds: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Add noise of standard deviation sigma (N,), drawn for each sample from its seed (N,), on the volumes' device.

    A CPU draws from 2^16 equally likely levels, the normal quantiles (up to 4.3 sigma), in a third of the time.
    """
    changed = result_like(volumes, out)
    for volume, place, deviation, seed in zip(volumes, changed, sigma.tolist(), seeds.tolist(), strict=True):
        if volume.device.type == "cpu":
            _add_levels(volume.contiguous().view(-1), deviation, seed, out=place.view(-1))
        else:
            generator = torch.Generator(volume.device).manual_seed(seed)
            noise = torch.randn(volume.shape, generator=generator, device=volume.device, dtype=volume.dtype)
            torch.add(volume, noise, alpha=deviation, out=place)
    return changed


def _add_levels(values: Tensor, deviation: float, seed: int, *, out: Tensor) -> None:
    """Normal quantiles at random, in pieces that stay in a cache, on values (voxels,)."""
    words = np.random.SFC64(seed)
    for part, place in zip(values.split(_PIECE), out.split(_PIECE), strict=True):
        levels = words.random_raw(-(-len(part) // 4)).view(np.uint16)[: len(part)]  # four in a word of 64 bits
        noise = _normal_quantiles().index_select(0, torch.from_numpy(levels.astype(np.int32)))
        torch.add(part, noise.to(part), alpha=deviation, out=place)


@lru_cache(maxsize=1)
def _normal_quantiles() -> Tensor:
    """(2^16,) float32: the middles of equally likely intervals, scaled to variance 1."""
    levels = torch.special.ndtri((torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16)
    return (levels / levels.square().mean().sqrt()).float()


def histogram_shift(volumes: Tensor, control_points: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Map intensities piecewise linearly within each sample's own range.

    Args:
        volumes: constant samples stay as they are.
        control_points: (N, P >= 2) ascending in [0, 1]; the values at P equally spaced intensities of the range.
        out: takes the result.
    """
    changed = result_like(volumes, out)
    if volumes.device.type != "cpu":
        return changed.copy_(_sum_of_bent_lines(volumes, control_points))
    for volume, points, place in zip(volumes, control_points.tolist(), changed, strict=True):
        _bend_one_after_the_other(volume, points, out=place)
    return changed


def _bend_one_after_the_other(volume: Tensor, points: list[float], *, out: Tensor) -> None:
    """A line that is bent at every knot, by two fast steps in place: what lies below gets the ratio of the slopes.

    Slopes are at least 1e-6, so that their ratios are finite.
    """
    low, high = (float(edge) for edge in volume.aminmax())
    parts = len(points) - 1
    step = (high - low) / parts
    slopes = [max((right - left) * parts, _FLATTEST) for left, right in pairwise(points)]
    torch.sub(volume, low, out=out)
    for left, right in pairwise(slopes):
        F.leaky_relu_(out.sub_(step), left / right)
    torch.add(torch.tensor(low + (high - low) * points[-2]), out, alpha=slopes[-1], out=out)


def _sum_of_bent_lines(volumes: Tensor, control_points: Tensor) -> Tensor:
    """The same for all samples at once, without waiting for their ranges."""
    low, high = _range(volumes)
    points = control_points.double()
    parts = points.shape[1] - 1
    slopes = points.diff(dim=1) * parts
    *bends, last = _columns(torch.cat([-slopes.diff(dim=1), slopes[:, -1:]], 1), volumes)
    value, slope = _columns(torch.stack([points[:, 0], slopes[:, 0]], 1), volumes)
    shifted = torch.addcmul(torch.lerp(low, high, value) - slope * low, volumes, last)
    for k, bend in enumerate(bends, 1):
        shifted.addcmul_(torch.minimum(volumes, torch.lerp(low, high, k / parts)), bend)
    return shifted


def gaussian_sharpen(
    volumes: Tensor, sigma: tuple[Tensor, Tensor], alpha: Tensor, *, out: Tensor | None = None
) -> Tensor:
    """b1 + alpha * (b1 - b2): b1 blurred with sigma[0], b2 = b1 blurred with sigma[1] (each (N, 3)), alpha (N,).

    Leaves [0, 1] at edges, by far for the reference's alpha of 10 to 30.
    """
    once = gaussian_smooth(volumes, sigma[0])
    twice = gaussian_smooth(once, sigma[1], out=result_like(volumes, out))
    return torch.lerp(twice, once, 1 + _per_sample(alpha, volumes), out=twice)


def gibbs_noise(volumes: Tensor, alpha: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Keep a ball of the k-space of radius (1 - alpha) * longest side / sqrt(2); alpha (N,), 0 = nearly unchanged.

    MONAI centres the ball half a sample beside the zero frequency of even sides and drops the imaginary part of the
    result; the real transform of the symmetrised ball gives the same numbers in half the work.
    """
    x, y, z = volumes.shape[2:]
    radius = (1 - alpha.double()) * max(x, y, z) * 0.5**0.5
    reach = min(z // 2, int(radius.max() + 0.5)) + 1  # frequencies of the last axis of which something may be kept
    inside, mirrored = (squared[..., :reach] for squared in _distances_squared((x, y, z), volumes.device))
    limit = _per_sample(radius.square().float(), volumes)[:, 0]
    keep, other = (torch.empty(len(volumes), *inside.shape, device=volumes.device) for _ in range(2))
    torch.le(inside, limit, out=keep).add_(torch.le(mirrored, limit, out=other)).mul_(0.5)
    spectrum = torch.fft.fft2(torch.fft.rfft(volumes, dim=4)[..., :reach], dim=(2, 3)) * keep[:, None]
    spectrum = torch.fft.ifft2(spectrum, dim=(2, 3))  # in one irfftn it is twice as slow
    return torch.fft.irfft(spectrum, n=z, dim=4, out=result_like(volumes, out))


@lru_cache(maxsize=8)
def _distances_squared(sides: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    """(X, Y, Z // 2 + 1) squared distance of each real-FFT frequency from MONAI's centre, and that of its negative."""
    frequencies = [torch.arange(side, device=device) for side in sides]
    mirrored = [-frequency % side for frequency, side in zip(frequencies, sides, strict=True)]
    return _distance_squared(frequencies, sides), _distance_squared(mirrored, sides)


def _distance_squared(frequencies: list[Tensor], sides: Shape) -> Tensor:
    x, y, z = (
        ((frequency + side // 2) % side - (side - 1) / 2).square()
        for frequency, side in zip(frequencies, sides, strict=True)
    )
    return x[:, None, None] + y[:, None] + z[: sides[2] // 2 + 1]


def _power_(values: Tensor, exponents: Tensor) -> Tensor:
    """exp(exponents * log(values)) in place, a third of the time of pow; on a CPU NumPy's are the fastest."""
    if values.device.type != "cpu":
        return values.log_().mul_(exponents).exp_()
    array = values.numpy()
    np.log(array, out=array)
    np.multiply(array, exponents.numpy(), out=array)
    np.exp(array, out=array)
    return values


def _range(volumes: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest intensity of each sample, broadcastable to the volumes."""
    if len(volumes) == 1:
        return volumes.aminmax()
    flat = volumes.flatten(1)  # two passes: aminmax along a dimension is 20 times slower
    return _per_sample(flat.amin(1), volumes), _per_sample(flat.amax(1), volumes)


def _columns(rows: Tensor, volumes: Tensor) -> list[Tensor]:
    """The columns of (N, P), each broadcastable to the volumes."""
    return list(rows.to(volumes).view(*rows.shape, *[1] * (volumes.ndim - 1)).unbind(1))


def _per_sample(values: Tensor, volumes: Tensor) -> Tensor:
    return values.to(volumes).view(-1, *[1] * (volumes.ndim - 1))
