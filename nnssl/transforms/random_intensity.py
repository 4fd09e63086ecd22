"""Random intensity augmentation: parameters per sample from an explicit generator, ranges of 3DINO.

Functions named after a change draw who is changed, and how; `apply` does it to volumes (N, C, X, Y, Z) in [0, 1], in
place; nothing is clipped. Parameters are drawn for every sample whether used or not, on the generator's device, so
that the numbers depend on the generator alone; only noise depends on the device of the volumes as well. Where
processes share a batch, each draws for all of it, from a generator in the same state, and uses its own rows: two
processes change what one would.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from nnssl.transforms.blur import gaussian_smooth
from nnssl.transforms.intensity import (
    gamma_contrast,
    gaussian_noise,
    gaussian_sharpen,
    gibbs_noise,
    histogram_shift,
)

GAMMA = (0.5, 2.0)
NOISE_SIGMA = (0.0, 0.001)  # reference: up to 0.002 on [-1, 1], which spans twice as much
CONTROL_POINTS = 10
SMOOTH_SIGMA = (0.25, 1.5)  # voxels
SHARPEN_SIGMA = (0.5, 1.0)  # voxels, first blur; the second lies between 0.5 and the first
SHARPEN_ALPHA = (10.0, 30.0)


Rows = Tensor | slice


class Change(NamedTuple):
    """What happens to some samples: `transform(volumes, their rows, out)`."""

    transform: Callable[[Tensor, Rows, Tensor | None], Tensor]
    chosen: Tensor | None = None  # (N,), on the CPU, so that nothing waits for the device; None: all


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


class Kind(Protocol):
    """One of the functions below."""

    def __call__(
        self, samples: int, generator: torch.Generator, probability: float, *, share: Share = ALONE
    ) -> list[Change]: ...


def draw(
    kinds: Sequence[tuple[Kind, float]], samples: int, generator: torch.Generator, *, share: Share = ALONE
) -> list[Change]:
    """Changes of every kind, with its probability, in order."""
    return [change for kind, chance in kinds for change in kind(samples, generator, chance, share=share)]


def apply(volumes: Tensor, changes: Sequence[Change]) -> Tensor:
    """Make the changes in their order, in place.

    A GPU makes each change to all samples at once; a CPU makes all changes to one sample after the other, so that it
    stays in the cache.
    """
    return (_one_sample_at_a_time if volumes.device.type == "cpu" else _one_change_at_a_time)(volumes, changes)


def _one_sample_at_a_time(volumes: Tensor, changes: Sequence[Change]) -> Tensor:
    for row in range(len(volumes)):
        own = slice(row, row + 1)
        for transform, chosen in changes:
            if chosen is None or chosen[row]:
                transform(volumes[own], own, volumes[own])
    return volumes


def _one_change_at_a_time(volumes: Tensor, changes: Sequence[Change]) -> Tensor:
    for transform, chosen in changes:
        if chosen is None:
            transform(volumes, slice(None), volumes)
        elif chosen.any():
            rows = chosen.nonzero()[:, 0]
            index = rows.to(volumes.device, non_blocking=True)
            volumes.index_copy_(0, index, transform(volumes.index_select(0, index), rows, None))
    return volumes


def contrast_noise_or_histogram(
    samples: int, generator: torch.Generator, probability: float, *, share: Share = ALONE
) -> list[Change]:
    """One of gamma contrast, Gaussian noise and histogram shift (a third each), with `probability` in all."""
    count = samples * share.processes
    choice = share.own(torch.randint(3, (count,), generator=generator, device=generator.device).cpu())
    chosen = share.own(_happens(count, generator, probability))
    gamma = share.own(_uniform((count,), generator, *GAMMA))
    sigma = share.own(_uniform((count,), generator, *NOISE_SIGMA))
    points = share.own(_control_points(count, generator))
    seeds = share.own(torch.randint(2**62, (count,), generator=generator, device=generator.device).cpu())
    return [
        Change(lambda part, rows, out: gamma_contrast(part, gamma[rows], out=out), chosen & (choice == 0)),
        Change(lambda part, rows, out: gaussian_noise(part, sigma[rows], seeds[rows], out=out), chosen & (choice == 1)),
        Change(lambda part, rows, out: histogram_shift(part, points[rows], out=out), chosen & (choice == 2)),
    ]


def smooth(samples: int, generator: torch.Generator, probability: float, *, share: Share = ALONE) -> list[Change]:
    """Gaussian smoothing of a sample with `probability`."""
    count = samples * share.processes
    chosen = share.own(_happens(count, generator, probability))
    sigma = share.own(_uniform((count, 3), generator, *SMOOTH_SIGMA))
    return [Change(lambda part, rows, out: gaussian_smooth(part, sigma[rows], out=out), chosen)]


def smooth_or_sharpen(
    samples: int, generator: torch.Generator, probability: float, *, share: Share = ALONE
) -> list[Change]:
    """Gaussian smoothing or sharpening (half each) of a sample with `probability` in all.

    The paper does not list sharpening; the reference does it.
    """
    count = samples * share.processes
    sharpened = share.own(_happens(count, generator, 0.5))
    chosen = share.own(_happens(count, generator, probability))
    sigma = share.own(_uniform((count, 3), generator, *SMOOTH_SIGMA))
    first = share.own(_uniform((count, 3), generator, *SHARPEN_SIGMA))
    low = SHARPEN_SIGMA[0]
    second = low + (first - low) * share.own(_uniform((count, 3), generator, 0.0, 1.0))
    alpha = share.own(_uniform((count,), generator, *SHARPEN_ALPHA))
    return [
        Change(lambda part, rows, out: gaussian_smooth(part, sigma[rows], out=out), chosen & ~sharpened),
        Change(
            lambda part, rows, out: gaussian_sharpen(part, (first[rows], second[rows]), alpha[rows], out=out),
            chosen & sharpened,
        ),
    ]


def gibbs(samples: int, generator: torch.Generator, probability: float, *, share: Share = ALONE) -> list[Change]:
    """Gibbs ringing of a sample with `probability`, alpha between 0 and 1."""
    count = samples * share.processes
    chosen = share.own(_happens(count, generator, probability))
    alpha = share.own(_uniform((count,), generator, 0.0, 1.0))
    return [Change(lambda part, rows, out: gibbs_noise(part, alpha[rows], out=out), chosen)]


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
