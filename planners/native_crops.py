"""Spacing and crop of encoders that were trained at a fixed spacing (Swin), or that a recipe asks for; axes X Y Z.

The crop is the wanted one, clipped per axis to whole multiples that lie inside the median scan. A median scan that is
shorter than half of the wanted crop would be mostly padding at that spacing: there the token rule of `crops` decides.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from nnssl.encoders.base import EncoderSpec
from nnssl.geometry import ScanSizes, Triple, whole_tokens
from nnssl.planners.crops import (
    FinetuneCrop,
    PretrainCrop,
    Spacing,
    finetune_crop,
    floats,
    grow_grid,
    nnunet_spacing,
    sides,
)

LARGEST_CELL = 16  # voxels; what a stride of 32 resolves says nothing about the skip connections
SMALLEST_SHARE = 0.5  # of the wanted crop, along every axis of the median scan


@dataclass(frozen=True)
class Wanted:
    """Spacing and crop that an encoder, a recipe or the command line asks for."""

    spacing_mm: Spacing
    crop: Triple  # voxels
    source: str  # "flag", "encoder" or "recipe", as in `crops.SPACING_RULES`


def resolved_cell(spec: EncoderSpec) -> int:
    """Side (voxels) of what the token rule counts as one token of this encoder."""
    return min(LARGEST_CELL, spec.token_stride)


def is_too_small(sizes: ScanSizes, wanted: Wanted) -> bool:
    """Whether the median scan is shorter than half of the wanted crop along some axis."""
    return bool((sizes.median_shape(wanted.spacing_mm) < SMALLEST_SHARE * np.array(wanted.crop)).any())


def wanted_crop(sizes: ScanSizes, wanted: Wanted, spec: EncoderSpec, budget: int) -> FinetuneCrop:
    """The wanted crop at the wanted spacing, or the token rule where the scans are too small for it.

    Args:
        sizes: of the scans.
        wanted: a spacing given on the command line is taken however small the scans are.
        spec: of the encoder; every side is a multiple of `crop_multiple`, at least one.
        budget: most cells of crop_multiple^3 voxels; below the wanted crop, its longest sides give way.
    """
    multiple = spec.crop_multiple
    if wanted.source != "flag" and is_too_small(sizes, wanted):
        return replace(finetune_crop(sizes, multiple, budget, cell=resolved_cell(spec)), rule="small")
    spacing = np.array(wanted.spacing_mm)
    median = sizes.median_shape(spacing)
    crop = sides(_clipped_grid(wanted.crop, median, multiple, budget), multiple)
    base = nnunet_spacing(sizes)
    return FinetuneCrop(wanted.spacing_mm, floats(base / spacing), floats(median), crop, multiple, wanted.source)


def native_pretrain_crop(sizes: ScanSizes, wanted: Wanted, spec: EncoderSpec, budget: int) -> PretrainCrop:
    """Volumes stored at the spacing that the encoder sees, so that views are crops that are not resized (SMIT).

    The local view has half of the global view's sides, rounded up to whole multiples.
    """
    whole = wanted_crop(sizes, wanted, spec, budget)
    local = sides((np.array(whole.crop) // spec.crop_multiple + 1) // 2, spec.crop_multiple)
    coarsened = floats(1 / np.array(whole.refined))
    return PretrainCrop(
        whole.spacing_mm, coarsened, whole.median_shape, whole.crop, local, spec.crop_multiple, whole.rule
    )


def _clipped_grid(crop: Triple, median: ArrayLike, multiple: int, budget: int) -> Triple:
    inside = np.maximum(whole_tokens(median, multiple), 1)
    return grow_grid(np.minimum(np.maximum(np.array(crop) // multiple, 1), inside), (1.0, 1.0, 1.0), budget)
