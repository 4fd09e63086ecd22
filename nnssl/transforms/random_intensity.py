"""Random intensity augmentation: parameters per sample from an explicit generator, ranges of 3DINO.

All functions change `volumes` (N, C, X, Y, Z), in [0, 1], in place and return them; nothing is clipped here.
Parameters are drawn for every sample whether used or not, on the generator's device, so that the numbers depend on the
generator alone; only noise depends on the device of the volumes as well. Where processes share a batch, each draws
for all of it, from a generator in the same state, and uses its own rows: two processes change what one would.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nnssl.transforms.intensity import (
    gamma_contrast,
    gaussian_noise,
    gaussian_sharpen,
    gaussian_smooth,
    gibbs_noise,
    histogram_shift,
)

GAMMA = (0.5, 2.0)
NOISE_SIGMA = (0.0, 0.001)  # reference: up to 0.002 on [-1, 1], which spans twice as much
CONTROL_POINTS = 10
SMOOTH_SIGMA = (0.25, 1.5)  # voxels
SHARPEN_SIGMA = (0.5, 1.0)  # voxels, first blur; the second lies between 0.5 and the first
SHARPEN_ALPHA = (10.0, 30.0)


class Share(NamedTuple):
    """The rows are views, view-major, of samples rank * samples ... of a batch of processes * samples."""

    samples: int = 1
    rank: int = 0
    processes: int = 1

    def own(self, joint: Tensor) -> Tensor:
        """The rows of this process of (V * processes * samples, ...)."""
        if self.processes == 1:
            return joint
        return joint.unflatten(0, (-1, self.processes, self.samples))[:, self.rank].flatten(0, 1)


ALONE = Share()


def contrast_noise_or_histogram(
    volumes: Tensor, generator: torch.Generator, probability: float = 0.8, *, share: Share = ALONE
) -> Tensor:
    """One of gamma contrast, Gaussian noise and histogram shift (a third each), with `probability` in all."""
    count = len(volumes) * share.processes
    choice = share.own(torch.randint(3, (count,), generator=generator, device=generator.device).cpu())
    chosen = share.own(_happens(count, generator, probability))
    gamma = share.own(_uniform((count,), generator, *GAMMA))
    sigma = share.own(_uniform((count,), generator, *NOISE_SIGMA))
    points = share.own(_control_points(count, generator))
    seeds = share.own(torch.randint(2**62, (count,), generator=generator, device=generator.device).cpu())
    _change(volumes, chosen & (choice == 0), lambda part, rows: gamma_contrast(part, gamma[rows]))
    _change(volumes, chosen & (choice == 1), lambda part, rows: _noise(part, sigma[rows], seeds[rows]))
    _change(volumes, chosen & (choice == 2), lambda part, rows: histogram_shift(part, points[rows]))
    return volumes


def smooth(volumes: Tensor, generator: torch.Generator, probability: float, *, share: Share = ALONE) -> Tensor:
    """Gaussian smoothing of a sample with `probability`."""
    count = len(volumes) * share.processes
    chosen = share.own(_happens(count, generator, probability))
    sigma = share.own(_uniform((count, 3), generator, *SMOOTH_SIGMA))
    return _change(volumes, chosen, lambda part, rows: gaussian_smooth(part, sigma[rows]))


def smooth_or_sharpen(
    volumes: Tensor, generator: torch.Generator, probability: float, *, share: Share = ALONE
) -> Tensor:
    """Gaussian smoothing or sharpening (half each) of a sample with `probability` in all.

    The paper does not list sharpening; the reference does it.
    """
    count = len(volumes) * share.processes
    sharpened = share.own(_happens(count, generator, 0.5))
    chosen = share.own(_happens(count, generator, probability))
    sigma = share.own(_uniform((count, 3), generator, *SMOOTH_SIGMA))
    first = share.own(_uniform((count, 3), generator, *SHARPEN_SIGMA))
    low = SHARPEN_SIGMA[0]
    second = low + (first - low) * share.own(_uniform((count, 3), generator, 0.0, 1.0))
    alpha = share.own(_uniform((count,), generator, *SHARPEN_ALPHA))
    _change(volumes, chosen & ~sharpened, lambda part, rows: gaussian_smooth(part, sigma[rows]))
    return _change(
        volumes,
        chosen & sharpened,
        lambda part, rows: gaussian_sharpen(part, (first[rows], second[rows]), alpha[rows]),
    )


def gibbs(volumes: Tensor, generator: torch.Generator, probability: float, *, share: Share = ALONE) -> Tensor:
    """Gibbs ringing of a sample with `probability`, alpha between 0 and 1."""
    count = len(volumes) * share.processes
    chosen = share.own(_happens(count, generator, probability))
    alpha = share.own(_uniform((count,), generator, 0.0, 1.0))
    return _change(volumes, chosen, lambda part, rows: gibbs_noise(part, alpha[rows]))


def _change(volumes: Tensor, chosen: Tensor, transform: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Replace the chosen samples by their transform; `chosen` (N,) lies on the CPU, so nothing waits for the device.

    A GPU takes all samples at once; a CPU takes one after the other, so that temporaries stay in its cache.
    """
    rows = chosen.nonzero()[:, 0]
    if volumes.device.type == "cpu":
        for row in rows.tolist():
            part = volumes[row : row + 1]
            part.copy_(transform(part, torch.tensor([row])))
    elif len(rows):
        index = rows.to(volumes.device, non_blocking=True)
        volumes.index_copy_(0, index, transform(volumes.index_select(0, index), rows))
    return volumes


def _uniform(shape: tuple[int, ...], generator: torch.Generator, low: float, high: float) -> Tensor:
    drawn = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
    return (low + (high - low) * drawn).cpu()


def _happens(count: int, generator: torch.Generator, probability: float) -> Tensor:
    return _uniform((count,), generator, 0.0, 1.0) < probability


def _control_points(count: int, generator: torch.Generator) -> Tensor:
    """(count, CONTROL_POINTS) ascending in [0, 1]: each inner point uniform between its moved left and its right."""
    points = torch.linspace(0, 1, CONTROL_POINTS, dtype=torch.float64).repeat(count, 1)
    drawn = _uniform((count, CONTROL_POINTS), generator, 0.0, 1.0)
    for i in range(1, CONTROL_POINTS - 1):
        points[:, i] = torch.lerp(points[:, i - 1], points[:, i + 1], drawn[:, i])
    return points


def _noise(volumes: Tensor, sigma: Tensor, seeds: Tensor) -> Tensor:
    """Noise of one seed per sample, drawn on the device of the volumes."""
    device = volumes.device
    noisy = [
        gaussian_noise(volumes[row : row + 1], sigma[row : row + 1], torch.Generator(device).manual_seed(seed))
        for row, seed in enumerate(seeds.tolist())
    ]
    return torch.cat(noisy)
