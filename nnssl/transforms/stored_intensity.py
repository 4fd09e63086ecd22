"""Raw intensities to the stored range [0, 1]: percentiles of the whole image, or a fixed window."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Bounds = tuple[float, float]


def percentile_bounds(image: NDArray[np.floating], low: float, high: float) -> Bounds:
    """Intensities that become 0 and 1: two percentiles (in percent, linear interpolation) of the WHOLE image.

    Take them before any cropping: 3DINO (and MONAI's ScaleIntensityRangePercentiles) does, and zeros around the body
    move percentiles. The SMIT benchmark clips MR at 5 and 95 and does not say of what; here it is the whole image too.

    Deviation: where both percentiles coincide (with 0.05 and 99.95, more than 99.9 % of the voxels share one value;
    with 5 and 95, more than 90 %) the reference returns `(value - percentile) - 1`, unscaled and unclipped, for the
    range [-1, 1]; here the image's minimum and maximum are used, so that the result still spans [0, 1].

    Raises:
        ValueError: a voxel is NaN or infinite, or all voxels are equal.
    """
    if not np.isfinite(image).all():
        raise ValueError("scaling intensities: the image holds NaN or infinite voxels; only finite values are allowed")
    lower, upper = (float(value) for value in np.percentile(image, (low, high)))
    if lower == upper:
        lower, upper = float(image.min()), float(image.max())
    if lower == upper:
        raise ValueError(f"scaling intensities: every voxel is {lower:g}; an image needs at least two different values")
    return lower, upper


def to_stored(image: NDArray[np.floating], bounds: Bounds) -> NDArray[np.float32]:
    """Map bounds to [0, 1] and clip; the result is float32 and new.

    The arithmetic is that of nnU-Net's CTNormalization (clip, subtract, divide, all float32), so that stock nnU-Net
    makes the same numbers from a window.
    """
    lower, upper = np.float32(bounds[0]), np.float32(bounds[1])
    stored = np.clip(image.astype(np.float32, copy=False), lower, upper)
    stored -= lower
    stored /= max(upper - lower, np.finfo(np.float32).tiny)
    return np.minimum(stored, np.float32(1), out=stored)


def channel_bounds(images: NDArray[np.floating], low: float, high: float) -> list[Bounds]:
    """Percentile bounds of every channel of (C, X, Y, Z)."""
    return [percentile_bounds(channel, low, high) for channel in images]


def as_channel_properties(bounds: Sequence[Bounds]) -> dict[str, dict[str, float]]:
    """Bounds as nnU-Net's `foreground_intensity_properties_per_channel`.

    CTNormalization clips to percentile_00_5 and percentile_99_5, subtracts mean and divides by std: these values make
    it map the bounds to [0, 1].
    """
    return {
        str(channel): {
            "mean": lower,
            "std": upper - lower,
            "percentile_00_5": lower,
            "percentile_99_5": upper,
            "median": (lower + upper) / 2,
            "min": lower,
            "max": upper,
        }
        for channel, (lower, upper) in enumerate(bounds)
    }
