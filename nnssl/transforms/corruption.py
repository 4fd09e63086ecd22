"""Corruptions that a network learns to undo: boxes of noise, boxes of another sample (SwinUNETR, arXiv:2111.14791)."""

import torch
from torch import Tensor

SIDES = (0.05, 0.25)  # of a box, shares of each edge of the volume; the upper end is excluded
_DRAWN_AT_ONCE = 32  # boxes

Box = tuple[slice, slice, slice]


def cut_out(volume: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A copy of a volume in which random boxes hold Gaussian noise, each box rescaled to span exactly [0, 1].

    Args:
        volume: (C, X, Y, Z) in [0, 1].
        share: in [0, 1]; the boxes' summed volume is uniform between 0 and this share; see `random_boxes`.
        generator: on the volume's device.
    """
    corrupted = volume.clone()
    for box in random_boxes(tuple(volume.shape[1:]), share, generator):
        part = corrupted[(slice(None), *box)]
        noise = torch.randn(part.shape, generator=generator, device=volume.device, dtype=volume.dtype)
        low, high = noise.aminmax()
        part.copy_((noise - low) / (high - low).clamp_min(torch.finfo(volume.dtype).tiny))
    return corrupted


def swap_boxes(volumes: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A copy of a batch in which each sample holds boxes copied from the same places of a randomly drawn sample.

    Where the drawn sample is the sample itself nothing changes, so a batch of one stays as it is (as the reference).

    Args:
        volumes: (B, C, X, Y, Z).
        share: as in `cut_out`.
        generator: on any device.
    """
    swapped = volumes.clone()
    partners = torch.randint(len(volumes), (len(volumes),), generator=generator, device=generator.device).tolist()
    for sample, partner in enumerate(partners):
        if partner == sample:
            continue
        for box in random_boxes(tuple(volumes.shape[2:]), share, generator):
            swapped[(sample, slice(None), *box)] = volumes[(partner, slice(None), *box)]
    return swapped


def random_boxes(shape: tuple[int, ...], share: float, generator: torch.Generator) -> list[Box]:
    """Boxes at uniform places until their volumes sum up to a part of the whole that is uniform in [0, share).

    Overlaps count twice, as in the reference; the last box overshoots. Sides are uniform within `SIDES`.
    """
    edges = torch.tensor(shape)
    low = (edges * SIDES[0]).long().clamp(min=1)
    high = torch.maximum((edges * SIDES[1]).long(), low + 1)
    missing = float(edges.prod()) * share * float(_drawn((), generator))
    boxes: list[Box] = []
    while missing > 0:
        drawn = _drawn((_DRAWN_AT_ONCE, 2, 3), generator)
        sides = low + (drawn[:, 0] * (high - low)).long()
        starts = (drawn[:, 1] * (edges - sides + 1)).long()
        before = sides.prod(1).cumsum(0) - sides.prod(1)
        used = int((before < missing).sum())
        ends = (starts + sides)[:used].tolist()
        boxes += [_box(start, end) for start, end in zip(starts[:used].tolist(), ends, strict=True)]
        missing -= float(sides.prod(1).sum())
    return boxes


def _box(start: list[int], end: list[int]) -> Box:
    x, y, z = (slice(first, last) for first, last in zip(start, end, strict=True))
    return x, y, z


def _drawn(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64).cpu()
