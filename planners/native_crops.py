"""Spacing and crop of encoders that were trained at a fixed spacing, or that a recipe asks for; axes X Y Z.

The crop is the wanted one, per axis at most the whole multiples nearest to the median scan. A median scan shorter than
half of the wanted crop gets a finer spacing, towards nnU-Net's, and a crop that covers it. No token rule is needed
where the finest features have a voxel or two (Swin, ResEnc); it only says how fine small scans get under a Primus.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnssl.encoders.base import EncoderSpec
from nnssl.geometry import ScanSizes, Triple, padding_share, token_count
from nnssl.planners.crops import (
    FinetuneCrop,
    PretrainCrop,
    Spacing,
    floats,
    grow_grid,
    nnunet_spacing,
    refined_spacing,
    sides,
)

SMALLEST_SHARE = 0.5  # of the wanted crop, along every axis of the median scan
MUCH_PADDING = 0.25  # of a crop that covers the median scan; above, the spacing is refined to fill it
FILLING_FACTOR = 2.0  # at most, for that
FACTOR_STEP = 0.005
NEAR = 1.25  # spacings within a quarter of nnU-Net's become nnU-Net's
SMALLEST_CELLS = {"resenc": 2}  # of a crop, by family, elsewhere 1: InstanceNorm needs two cells on the coarsest map


@dataclass(frozen=True)
class Wanted:
    """Spacing and crop that an encoder, a recipe or the command line asks for."""

    spacing_mm: Spacing
    crop: Triple  # voxels
    source: str  # "flag", "encoder" or "recipe", as in `crops.SPACING_RULES`


def is_too_small(sizes: ScanSizes, wanted: Wanted) -> bool:
    """Whether the median scan is shorter than half of the wanted crop along some axis."""
    return bool((sizes.median_shape(wanted.spacing_mm) < SMALLEST_SHARE * np.array(wanted.crop)).any())


def wanted_crop(sizes: ScanSizes, wanted: Wanted, spec: EncoderSpec, budget: int) -> FinetuneCrop:
    """The wanted crop at the wanted spacing; small scans get a finer spacing and a crop that covers them.

    Args:
        sizes: of the scans.
        wanted: a spacing given on the command line is taken however small the scans are.
        spec: of the encoder; every side is a multiple of `crop_multiple`, at least one.
        budget: most cells of crop_multiple^3 voxels; below the wanted crop, its longest sides give way.
    """
    small, multiple = is_too_small(sizes, wanted), spec.crop_multiple
    spacing, rule = np.array(wanted.spacing_mm), wanted.source
    if small and rule != "flag":
        spacing, rule = small_spacing(sizes, wanted, spec), "small"
    median = sizes.median_shape(spacing)
    limit = nearest_grid(median, multiple)
    if not small:
        limit = np.minimum(limit, np.maximum(np.array(wanted.crop) // multiple, 1))
    grid = _with_enough_cells(np.array(grow_grid(limit, (1.0, 1.0, 1.0), budget)), median, spec)
    refined = nnunet_spacing(sizes) / spacing
    return FinetuneCrop(floats(spacing), floats(refined), floats(median), sides(grid, multiple), multiple, rule)


def small_spacing(sizes: ScanSizes, wanted: Wanted, spec: EncoderSpec) -> NDArray[np.float64]:
    """The wanted spacing, finer by one factor until the median scan holds half of the wanted crop along every axis.

    Along no axis finer than nnU-Net's spacing (for plain transformers the token rule's). Where a crop that covers the
    median scan would still be padding by more than a quarter, up to twice finer, until one multiple fits along every
    axis or the crop would need another cell.
    """
    native, nnunet = np.array(wanted.spacing_mm), nnunet_spacing(sizes)
    bound = nnunet if spec.is_pyramid else refined_spacing(sizes, nnunet, spec.crop_multiple)
    finest = np.minimum(native, bound)
    enough = np.minimum(SMALLEST_SHARE * np.array(wanted.crop), sizes.median_shape(finest))
    for factor in np.arange(1.0, (native / finest).max() + FACTOR_STEP, FACTOR_STEP):
        spacing = np.maximum(native / factor, finest)
        if (sizes.median_shape(spacing) >= enough).all():
            break
    spacing = np.where((spacing < native) & (spacing <= NEAR * finest), finest, spacing)
    return _filling_spacing(sizes, spacing, spec.crop_multiple)


def native_pretrain_crop(sizes: ScanSizes, wanted: Wanted, spec: EncoderSpec, budget: int) -> PretrainCrop:
    """Volumes stored at the spacing that the encoder sees, so that views are crops that are not resized (SMIT).

    The local view has half of the global view's sides, rounded up to whole multiples.
    """
    whole, multiple = wanted_crop(sizes, wanted, spec, budget), spec.crop_multiple
    half = (np.array(whole.crop) // multiple + 1) // 2
    local = sides(_with_enough_cells(half, whole.crop, spec), multiple)
    coarsened = floats(1 / np.array(whole.refined))
    return PretrainCrop(whole.spacing_mm, coarsened, whole.median_shape, whole.crop, local, multiple, whole.rule)


def smallest_cells(spec: EncoderSpec) -> int:
    """Cells of crop_multiple^3 voxels that a crop needs at least."""
    return SMALLEST_CELLS.get(spec.family, 1)


def nearest_grid(median: ArrayLike, multiple: int) -> NDArray[np.int64]:
    """Whole multiples nearest to the median scan per axis, at least one: half a multiple or more is padded."""
    return np.maximum(np.floor(np.asarray(median) / multiple + 0.5), 1).astype(np.int64)


def _filling_spacing(sizes: ScanSizes, start_mm: NDArray[np.float64], multiple: int) -> NDArray[np.float64]:
    """Finer by one factor in [1, 2] where a crop that covers the median scan is padding by more than a quarter."""
    median, filling = sizes.median_shape(start_mm), start_mm
    grid = nearest_grid(median, multiple)
    if padding_share(grid * multiple, median) <= MUCH_PADDING:
        return start_mm
    for factor in np.arange(1.0, FILLING_FACTOR + FACTOR_STEP / 2, FACTOR_STEP):
        shape = sizes.median_shape(start_mm / factor)
        if token_count(nearest_grid(shape, multiple)) > token_count(grid):
            break
        filling = start_mm / factor
        if (shape >= multiple).all():
            break
    return filling


def _with_enough_cells(grid: NDArray[np.int64], extent: ArrayLike, spec: EncoderSpec) -> NDArray[np.int64]:
    """Lengthened along the longest axis of `extent` where the encoder needs more cells."""
    missing = token_count(grid) < smallest_cells(spec)
    return np.where(np.arange(3) == np.argmax(extent), smallest_cells(spec), grid) if missing else grid
