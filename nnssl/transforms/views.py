"""Random crops of one volume, resized and turned or left as they are: the views of a pretext task.

"Volume" is (C, X, Y, Z). One axis, `depth_axis`, is the coarse one; the other two form the plane. Every draw comes
from the generator that is passed in.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

ATTEMPTS = 10  # draws of a plane before the fallback (as in 2D, Inception crops)
PLANES = ((0, 1), (0, 2), (1, 2))
SAMPLINGS = ("whole", "subvolume", "min_overlap")

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class CropRule:
    """How much of a volume a random crop takes (3DINO).

    Depth is drawn on its own, as a share of the *edge*: sliced scans have few, thick slices.
    """

    area: tuple[float, float]  # share of the plane
    depth: tuple[float, float]  # share of the depth edge
    ratio: tuple[float, float] = (0.9, 1 / 0.9)  # of the plane's sides, relative to the view's own

    def __post_init__(self) -> None:
        for name in ("area", "depth", "ratio"):
            low, high = getattr(self, name)
            if not (0 < low <= high and (name == "ratio" or high <= 1)):
                raise ValueError(f"CropRule.{name}=({low:g}, {high:g}): expected 0 < low <= high (<= 1 for a share)")


@dataclass(frozen=True)
class ViewSampling:
    """Where the views of one volume lie relative to each other; none is resized.

    whole: independently anywhere in the volume, so two views can be disjoint (SMIT's paper: "from whole images").
    subvolume: all within one random region of `subvolume` times the view's sides (SMIT's code: 128 for views of 96, so
        two views share at least 64 of 96 voxels per axis).
    min_overlap: every view shares at least `overlap` of each axis with the first one.
    """

    kind: str = "whole"
    subvolume: float = 4 / 3
    overlap: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in SAMPLINGS:
            raise ValueError(f"view sampling {self.kind!r} is unknown; known: {', '.join(SAMPLINGS)}")
        if self.subvolume < 1:
            raise ValueError(f"view sampling: subvolume={self.subvolume:g} must be 1 view or more")
        if not 0 <= self.overlap <= 1:
            raise ValueError(f"view sampling: overlap={self.overlap:g} must lie between 0 and 1")


WHOLE = ViewSampling()


def plain_views(
    volume: Tensor, size: Shape, *, count: int, generator: torch.Generator, sampling: ViewSampling = WHOLE
) -> Tensor:
    """`count` random crops (count, C, *size) at the stored resolution; a smaller volume is padded with 0, centred."""
    starts = [
        _axis_starts(max(full, side), side, count=count, generator=generator, sampling=sampling)
        for full, side in zip(_shape(volume), size, strict=True)
    ]
    return torch.stack([padded_crop(volume, corner, size) for corner in zip(*starts, strict=True)])


def random_view(volume: Tensor, rule: CropRule, *, size: Shape, depth_axis: int, generator: torch.Generator) -> Tensor:
    """A random crop of `volume` (C, X, Y, Z), resized to (C, *size), flipped and turned at random."""
    shape = _shape(volume)
    x, y, z = random_box(shape, rule, size=size, depth_axis=depth_axis, generator=generator)
    wide, inner = _whole_vectors(z, shape[2])
    return random_orientation(resize(volume[:, x, y, wide], size, inner), generator)


def random_box(
    shape: Shape, rule: CropRule, *, size: Shape, depth_axis: int, generator: torch.Generator
) -> tuple[slice, slice, slice]:
    """Where to crop a volume of `shape` voxels for a view of `size` voxels.

    Plane: up to 10 draws of area = share * plane and log-uniform ratio, accepted if both sides fit; then the largest
    plane of an allowed ratio. Lengths count in sides of the view, so that a ratio within `rule.ratio` means that
    resizing stretches one axis of the plane at most that much more than the other, whatever the shape of the view;
    for cubic views these are the reference's numbers. Depth: a share of the edge, drawn independently; at least one
    voxel (the reference takes the whole edge where rounding gives 0). The corner is uniform.
    """
    first, second = (axis for axis in range(3) if axis != depth_axis)
    edges, draws = [0, 0, 0], _Draws(generator, 2 * ATTEMPTS + 4)
    plane, view = (shape[first], shape[second]), (size[first], size[second])
    edges[first], edges[second] = _random_plane(plane, rule, size=view, draws=draws)
    edges[depth_axis] = max(1, round(shape[depth_axis] * draws.uniform(*rule.depth)))
    starts = [draws.integer(full - edge + 1) for full, edge in zip(shape, edges, strict=True)]
    x, y, z = (slice(start, start + edge) for start, edge in zip(starts, edges, strict=True))
    return x, y, z


def resize(volume: Tensor, size: Shape, part: slice = slice(None)) -> Tensor:
    """Volume (C, X, Y, Z), of Z only `part` -> (C, *size), trilinear with half-pixel centres, no antialiasing.

    That is the reference's. PyTorch's trilinear kernel goes voxel by voxel; plane, then depth, gives the same numbers
    4 times as fast: the bilinear kernel runs along the last axis, which it takes for channels.
    """
    if _shape(volume[..., part]) == tuple(size):
        return volume[..., part].clone()
    plane = F.interpolate(volume.movedim(-1, 1), size=tuple(size[:2]), mode="bilinear", align_corners=False)
    columns = plane.movedim(1, -1).flatten(0, -2)[:, None, part]
    return F.interpolate(columns, size=size[2], mode="linear", align_corners=False).view(len(volume), *size)


def _whole_vectors(part: slice, full: int) -> tuple[slice, slice]:
    """Part of an axis of `full` voxels, with as many more as make a multiple of 16, and where in it the part lies.

    A rest takes the bilinear kernel as long as all that comes before.
    """
    edge = min(full, -(-(part.stop - part.start) // 16) * 16)
    start = min(part.start, full - edge)
    return slice(start, start + edge), slice(part.start - start, part.stop - start)


def random_orientation(view: Tensor, generator: torch.Generator, *, flip: float = 0.3, turn: float = 0.3) -> Tensor:
    """Flip each axis with probability `flip`; turn each plane with probability `turn` by 90, 180 or 270 degrees.

    A plane with unequal sides is only turned by 180 degrees: the view keeps its size. The paper does not list turns.
    The result need not be contiguous.
    """
    draws = _Draws(generator, 9)
    mirrored = [draws.uniform() < flip for _ in range(3)]
    order = [0, 1, 2]  # axis of `view` that becomes each axis of the result
    for first, second in PLANES:
        happens, quarters = draws.uniform() < turn, 1 + draws.integer(3)
        if not happens:
            continue
        if view.shape[first + 1] != view.shape[second + 1]:
            quarters = 2
        for axis in {1: (second,), 2: (first, second), 3: (first,)}[quarters]:
            mirrored[order[axis]] = not mirrored[order[axis]]
        if quarters != 2:
            order[first], order[second] = order[second], order[first]
    axes = [axis + 1 for axis in range(3) if mirrored[axis]]
    return _reordered(view.flip(axes) if axes else view, order)


def _reordered(view: Tensor, order: list[int]) -> Tensor:
    """(C, *) with spatial axis order[k] as the k-th; swaps of neighbours are 5 times as fast as one reordering copy."""
    places = [order.index(axis) for axis in range(3)]
    while places != [0, 1, 2]:
        first = 0 if places[0] > places[1] else 1
        places[first], places[first + 1] = places[first + 1], places[first]
        view = view.contiguous().transpose(first + 1, first + 2)
    return view


def _random_plane(full: tuple[int, int], rule: CropRule, *, size: tuple[int, int], draws: "_Draws") -> tuple[int, int]:
    """Sides of the plane in voxels; see `random_box`."""
    height, width = full[0] / size[0], full[1] / size[1]
    log_ratio = (math.log(rule.ratio[0]), math.log(rule.ratio[1]))
    for _ in range(ATTEMPTS):
        area = height * width * draws.uniform(*rule.area)
        ratio = math.exp(draws.uniform(*log_ratio))
        rows = round(math.sqrt(area / ratio) * size[0])
        columns = round(math.sqrt(area * ratio) * size[1])
        if 0 < rows <= full[0] and 0 < columns <= full[1]:
            return rows, columns
    ratio = min(max(width / height, rule.ratio[0]), rule.ratio[1])
    rows = round(min(height, width / ratio) * size[0])
    columns = round(min(width, height * ratio) * size[1])
    return max(1, rows), max(1, columns)


def _axis_starts(full: int, side: int, *, count: int, generator: torch.Generator, sampling: ViewSampling) -> list[int]:
    """Starts of `count` views of `side` voxels along an axis of `full` voxels."""
    last = full - side
    if sampling.kind == "subvolume":
        room = min(round(sampling.subvolume * side), full) - side
        corner = _integer(generator, last - room + 1)
        return [corner + _integer(generator, room + 1) for _ in range(count)]
    first = _integer(generator, last + 1)
    reach = int(side * (1 - sampling.overlap)) if sampling.kind == "min_overlap" else last
    low, high = max(0, first - reach), min(last, first + reach)
    return [first, *(low + _integer(generator, high - low + 1) for _ in range(count - 1))]


def padded_crop(volume: Tensor, corner: tuple[int, ...], size: Shape) -> Tensor:
    """(C, *size) from `corner` on; along an axis that is too short all of it, with 0 on both sides."""
    missing = [max(0, side - full) for full, side in zip(_shape(volume), size, strict=True)]
    box = [slice(start, start + side) for start, side in zip(corner, size, strict=True)]
    crop = volume[(slice(None), *box)]
    if not any(missing):
        return crop
    return F.pad(crop, [part for gap in reversed(missing) for part in (gap // 2, gap - gap // 2)])


def _shape(volume: Tensor) -> Shape:
    x, y, z = volume.shape[-3:]
    return x, y, z


class _Draws:
    """Random numbers for one decision after the other, drawn at once: one by one they cost more than the decisions."""

    def __init__(self, generator: torch.Generator, count: int) -> None:
        self._left = iter(torch.rand(count, generator=generator, dtype=torch.float64).tolist())

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(next(self._left))

    def integer(self, below: int) -> int:
        return int(self.uniform() * below)


def _integer(generator: torch.Generator, below: int) -> int:
    return int(torch.randint(below, (), generator=generator))
