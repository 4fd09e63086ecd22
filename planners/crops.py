"""Spacing and crop from the sizes of the scans and the encoder's patch (the token rule): pure functions, axes X Y Z.

A ViT spends the same work on every token, so tokens that lie on padding are waste, and an organ that covers a dozen
tokens is not resolved. Hence: refine the spacing until the median scan holds enough tokens, then cut the largest crop
of whole tokens that lies inside the median scan and fits the token budget.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnssl.data.stored_shape import StoredLimit
from nnssl.geometry import (
    ScanSizes,
    Triple,
    centres_inside,
    depth_axis,
    padding_share,
    token_count,
    triple,
    whole_tokens,
)
from nnssl.planners.storage import stored_limit, threedino_views

Spacing = tuple[float, float, float]

TOKENS_WANTED = 200  # in the median scan; the paper's 96^3 crop has 6^3 = 216
FINEST_FACTOR = 3.0  # no spacing is refined more than this
FIT_FACTOR = 1.1  # extra refinement allowed to make whole tokens cover the median scan
ANISOTROPY = 3.0  # nnU-Net's threshold
SPACING_RULES = (
    "tokens",  # nnU-Net's, refined until the median scan holds enough tokens
    "flag",  # as given
    "encoder",  # what the encoder was trained at
    "recipe",  # what a paper's fine-tuning used
    "small",  # between the encoder's or recipe's and nnU-Net's, because the median scan is too small at the former
)


@dataclass(frozen=True)
class FinetuneCrop:
    """Spacing and crop of 3d_fullres."""

    spacing_mm: Spacing
    refined: Spacing  # nnU-Net's spacing / ours, per axis
    median_shape: tuple[float, float, float]  # voxels at spacing_mm
    crop: Triple  # voxels
    patch: int
    rule: str = "tokens"  # where the spacing comes from: one of SPACING_RULES

    @property
    def tokens(self) -> int:
        """Tokens (of a pyramid: cells of crop_multiple^3 voxels) of one crop."""
        return token_count(np.array(self.crop) // self.patch)

    @property
    def centres(self) -> int:
        """Token centres of a crop that lie inside the median scan."""
        return centres_inside(self.crop, self.median_shape, self.patch)

    @property
    def padding(self) -> float:
        """Share of the crop outside the median scan."""
        return padding_share(self.crop, self.median_shape)


@dataclass(frozen=True)
class PretrainCrop:
    """Storage and view sizes of pretraining."""

    spacing_mm: Spacing  # of the stored volumes, unless the limit makes them coarser
    coarsened: Spacing  # the median scan's as stored / nnU-Net's spacing, per axis
    median_shape: tuple[float, float, float]  # stored voxels
    global_crop: Triple
    local_crop: Triple
    patch: int
    rule: str = "tokens"  # "encoder": stored at the encoder's spacing, views are crops that are not resized
    limit: StoredLimit | None = None  # most voxels that are stored; None where views are not resized

    @property
    def global_tokens(self) -> int:
        """Tokens of one global view."""
        return token_count(np.array(self.global_crop) // self.patch)

    @property
    def local_tokens(self) -> int:
        """Tokens of one local view."""
        return token_count(np.array(self.local_crop) // self.patch)


def finetune_crop(
    sizes: ScanSizes, patch: int, token_budget: int, *, spacing_mm: ArrayLike | None = None
) -> FinetuneCrop:
    """Spacing and crop for fine-tuning; a given spacing is taken as it is.

    Args:
        sizes: of the scans.
        patch: every crop side is a multiple of it (voxels).
        token_budget: of patch^3 voxels, in one crop.
        spacing_mm: taken as it is.
    """
    base, rule = nnunet_spacing(sizes), "tokens" if spacing_mm is None else "flag"
    given = refined_spacing(sizes, base, patch) if spacing_mm is None else np.asarray(spacing_mm, dtype=float)
    median = sizes.median_shape(given)
    limit = np.maximum(whole_tokens(median, patch), 1)
    crop = sides(grow_grid(limit, given * patch, token_budget), patch)
    return FinetuneCrop(floats(given), floats(base / given), floats(median), crop, patch, rule)


def pretrain_crop(sizes: ScanSizes, patch: int, token_budget: int) -> PretrainCrop:
    """Views and storage for pretraining on all these scans.

    The global view has the proportions of the median scan (a random crop takes a share of every axis and is resized),
    and never more tokens per axis than the median scan holds at the refined spacing. The local view has half its
    sides. Volumes are stored at nnU-Net's spacing, each with no more voxels than any crop of 3DINO's policy can show
    (`storage.stored_limit`): finer voxels would be averaged away.
    """
    base = nnunet_spacing(sizes)
    limit = np.maximum(whole_tokens(sizes.median_shape(refined_spacing(sizes, base, patch)), patch), 1)
    extent = sizes.median_extent_mm()
    grid = np.array(grow_grid(limit, 1 / extent, token_budget))
    local = np.maximum((grid + 1) // 2, np.minimum(grid, 2))
    views = sides(grid, patch), sides(local, patch)
    limit = stored_limit(threedino_views(*views), depth_axis(floats(base)))
    median = sizes.median_shape(base)
    stored = np.array(limit.shape(median.tolist()), dtype=float)
    return PretrainCrop(floats(base), floats(median / stored), floats(stored), *views, patch, limit=limit)


def nnunet_spacing(sizes: ScanSizes) -> NDArray[np.float64]:
    """nnU-Net's target spacing: the median, and the 10th percentile along an axis that is much coarser and shorter."""
    target = np.median(sizes.spacings, axis=0)
    shape = np.median(sizes.shapes, axis=0)
    coarse = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != coarse]
    widest = target[others].max()
    if target[coarse] > ANISOTROPY * widest and shape[coarse] * ANISOTROPY < shape[others].min():
        tenth = np.percentile(sizes.spacings[:, coarse], 10)
        target[coarse] = tenth if tenth >= widest else widest + 1e-5
    return target


def refined_spacing(sizes: ScanSizes, base_mm: NDArray[np.float64], patch: int) -> NDArray[np.float64]:
    """The base spacing divided by one factor in [1, 3], the smallest that gives the median scan enough tokens.

    Then up to 10 % finer, if whole tokens cover more of the median scan that way. A short coarse axis is fitted to
    whole tokens first (`fit_coarse_axis`). A median scan with enough tokens keeps the base spacing.
    """
    factors = np.arange(1.0, FINEST_FACTOR + 1e-9, 0.005)
    options = [fit_coarse_axis(sizes, base_mm / factor, patch) for factor in factors]
    shapes = [sizes.median_shape(option) for option in options]
    tokens = np.array([token_count(whole_tokens(shape, patch)) for shape in shapes])
    if tokens[0] >= TOKENS_WANTED:
        return options[0]
    enough = np.flatnonzero(tokens >= TOKENS_WANTED)
    first = factors[enough[0]] if len(enough) else FINEST_FACTOR / FIT_FACTOR
    near = np.flatnonzero((factors >= first - 1e-9) & (factors <= first * FIT_FACTOR + 1e-9))
    covered = [tokens[index] * patch**3 / np.prod(shapes[index]) for index in near]
    return options[near[int(np.argmax(np.round(covered, 6)))]]


def fit_coarse_axis(sizes: ScanSizes, spacing_mm: NDArray[np.float64], patch: int) -> NDArray[np.float64]:
    """Refine the coarsest axis to whole tokens where the median scan is shorter than two of them along it.

    Ten slices of 10 mm are 0.6 tokens of 16 voxels (1.25 of 8): at 6.25 mm they are exactly one (two), and neither
    padding nor an uncovered rest remains. Left alone where that would make the axis finer than the others, or more
    than three times finer than it was.
    """
    coarse = int(np.argmax(spacing_mm))
    voxels = sizes.median_extent_mm()[coarse] / spacing_mm[coarse]
    wanted = np.ceil(voxels / patch - 1e-9) * patch
    fitted = spacing_mm[coarse] * voxels / wanted
    finest = max(np.delete(spacing_mm, coarse).min(), spacing_mm[coarse] / FINEST_FACTOR)
    if voxels >= 2 * patch or fitted < finest:
        return spacing_mm
    result = spacing_mm.copy()
    result[coarse] = fitted
    return result


def grow_grid(limit: ArrayLike, token_size: ArrayLike, budget: int) -> Triple:
    """The largest token grid within `limit` per axis and `budget` in total, grown evenly.

    The axis on which the grid is shortest, in units of `token_size`, grows first. Millimetres make a crop as cubic as
    the scan allows; shares of the scan make one with the scan's proportions.
    """
    grid, size, most = np.ones(3, dtype=int), np.asarray(token_size, dtype=float), np.asarray(limit)
    while True:
        larger = grid + np.eye(3, dtype=int)
        fits = [bool(larger[axis][axis] <= most[axis] and np.prod(larger[axis]) <= budget) for axis in range(3)]
        if not any(fits):
            return triple(grid)
        lengths = np.where(fits, np.round(grid * size, 9), np.inf)
        grid[int(np.argmin(lengths))] += 1


def mean_padding(sizes: ScanSizes, plan: FinetuneCrop) -> float:
    """Share of a crop's voxels outside the scan, averaged over all scans (half of them are smaller than the median)."""
    shapes = sizes.resampled(plan.spacing_mm)
    return float(np.mean([padding_share(plan.crop, shape) for shape in shapes]))


def floats(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Three Python floats."""
    x, y, z = (float(value) for value in values)
    return x, y, z


def sides(grid: ArrayLike, patch: int) -> Triple:
    """The sides in voxels of a grid of tokens."""
    return triple(np.asarray(grid) * patch)
