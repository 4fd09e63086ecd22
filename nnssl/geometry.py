"""Voxel and millimetre arithmetic of scans, spacings, token grids and crops; every axis order is X Y Z."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class ScanSizes:
    """Sizes of all scans of one or several data sets.

    shapes: (cases, 3) voxels after cropping to nonzero; spacings: (cases, 3) mm.
    """

    shapes: NDArray[np.float64]
    spacings: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.shapes.ndim != 2 or self.shapes.shape[1] != 3 or self.shapes.shape != self.spacings.shape:
            raise ValueError(
                f"scan sizes: expected two (cases, 3) arrays, got {self.shapes.shape} {self.spacings.shape}"
            )
        if len(self.shapes) == 0 or self.spacings.min() <= 0 or self.shapes.min() < 1:
            raise ValueError("scan sizes: at least one case with positive spacing and size is needed")

    def resampled(self, spacing_mm: ArrayLike) -> NDArray[np.float64]:
        """Shape of every case (cases, 3) at another spacing, rounded as nnU-Net's compute_new_shape."""
        return np.rint(self.spacings / np.asarray(spacing_mm, dtype=float) * self.shapes)

    def median_shape(self, spacing_mm: ArrayLike) -> NDArray[np.float64]:
        """Median over the cases, per axis, of the resampled shape; halves are possible."""
        return np.median(self.resampled(spacing_mm), axis=0)

    def median_extent_mm(self) -> NDArray[np.float64]:
        """Median over the cases, per axis, of the physical size."""
        return np.median(self.shapes * self.spacings, axis=0)


def join_sizes(parts: list[ScanSizes]) -> ScanSizes:
    """All cases of several data sets; every case counts once."""
    return ScanSizes(np.vstack([part.shapes for part in parts]), np.vstack([part.spacings for part in parts]))


def whole_tokens(shape: ArrayLike, patch: int) -> Triple:
    """Tokens of patch^3 voxels that fit completely into an image, per axis; 0 where it is thinner than a patch."""
    return triple(np.asarray(shape, dtype=float) // patch)


def token_count(grid: ArrayLike) -> int:
    """Number of tokens of a grid."""
    return int(np.prod(np.asarray(grid, dtype=np.int64)))


def centres_inside(crop: ArrayLike, image: ArrayLike, patch: int) -> int:
    """Token centres of a crop that lie inside an image on which the crop is centred.

    nnU-Net pads an image that is smaller than the crop evenly on both sides.
    """
    counts = []
    for side, voxels in zip(np.asarray(crop, dtype=float), np.asarray(image, dtype=float), strict=True):
        centres = (np.arange(side // patch) + 0.5) * patch - max(0.0, (side - voxels) / 2)
        counts.append(int(((centres >= 0) & (centres <= voxels)).sum()))
    return token_count(counts)


def depth_axis(spacing_mm: Sequence[float]) -> int:
    """The axis that crop policies treat apart from the plane of the other two: 0 X, 1 Y, 2 Z.

    That of the largest spacing; where two share it (thin slices of a CT), they are the plane and the third is the
    depth; of three equals Z. Spacings within 1 % count as equal.
    """
    largest = [axis for axis in range(3) if spacing_mm[axis] >= 0.99 * max(spacing_mm)]
    return 3 - sum(largest) if len(largest) == 2 else largest[-1]


def padding_share(crop: ArrayLike, image: ArrayLike) -> float:
    """Share of a crop's voxels that lie outside an image, 0 where the crop fits into it."""
    crop_sides = np.asarray(crop, dtype=float)
    return float(1 - np.prod(np.minimum(crop_sides, np.asarray(image, dtype=float)) / crop_sides))


def triple(values: ArrayLike) -> Triple:
    """Three Python integers."""
    x, y, z = (int(value) for value in np.asarray(values))
    return x, y, z
