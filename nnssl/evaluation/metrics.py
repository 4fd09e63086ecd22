"""Dice and 95 % Hausdorff distance of label maps on their own voxels, in mm, per case and label."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from scipy import ndimage
from scipy.spatial import cKDTree

from nnssl.dataset_conversion.scan_check import geometry_difference, read_scan

CONVENTIONS = {
    "dice": "2 |A and B| / (|A| + |B|); undefined (left out of means) where a label is in neither map, 0 where in one",
    "hd95_mm": "maximum of the two directed 95th percentiles of distances between surface voxels (6-neighbourhood), "
    "native spacing; undefined where a label is in neither map, missing (counted) where it is in one only",
    "ignore": "voxels that the reference marks as 'ignore' count for nothing",
}


@dataclass(frozen=True)
class LabelScore:
    """Scores of one label in one case: Dice in [0, 1] or NaN, HD95 in mm, inf or NaN, volumes in ml."""

    dice: float
    hd95_mm: float
    reference_ml: float
    prediction_ml: float


def dice(reference: np.ndarray, prediction: np.ndarray) -> float:
    """Dice overlap of two masks of one shape; NaN where both are empty (as nnU-Net), 0 where only one is."""
    total = int(np.count_nonzero(reference)) + int(np.count_nonzero(prediction))
    return 2 * int(np.count_nonzero(reference & prediction)) / total if total else float("nan")


def hd95_mm(reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Symmetric 95 % Hausdorff distance of two masks: the larger of the two directed 95th percentiles.

    Percentiles interpolate linearly (numpy's default). NaN where both masks are empty, inf where one is.

    Args:
        reference, prediction: boolean arrays of one shape.
        spacing_mm: voxel size along each array axis.
    """
    if not reference.any() or not prediction.any():
        return float("nan") if reference.any() == prediction.any() else float("inf")
    first = np.argwhere(surface(reference)) * np.asarray(spacing_mm)
    second = np.argwhere(surface(prediction)) * np.asarray(spacing_mm)
    return max(_directed_95(first, second), _directed_95(second, first))


def surface(mask: np.ndarray) -> np.ndarray:
    """Voxels of a boolean mask with a face neighbour outside it; beyond the array is outside."""
    padded = np.pad(mask, 1)
    inside = mask.copy()
    for axis in range(mask.ndim):
        for shifted in (slice(None, -2), slice(2, None)):
            window = [slice(1, -1)] * mask.ndim
            window[axis] = shifted
            inside &= padded[tuple(window)]
    return mask & ~inside


def evaluated_labels(dataset_json: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> voxel values of every class or region that is scored: all labels but background and ignore."""
    return {
        name: tuple(value) if isinstance(value, list | tuple) else (int(value),)
        for name, value in dataset_json["labels"].items()
        if name not in ("background", "ignore")
    }


def score_maps(
    reference: np.ndarray,
    prediction: np.ndarray,
    *,
    spacing_mm: Sequence[float],
    labels: Mapping[str, tuple[int, ...]],
    ignore: int | None = None,
) -> dict[str, LabelScore]:
    """Scores of every label of two integer label maps of one shape; `spacing_mm` along the array axes."""
    if ignore is not None:
        counted = reference != ignore
        reference, prediction = reference * counted, prediction * counted
    boxes = [ndimage.find_objects(array) for array in (reference, prediction)]
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    scores = {}
    for name, values in labels.items():
        box = _union_box([found[value - 1] for found in boxes for value in values if value <= len(found)])
        first, second = (_mask(array[box], values) for array in (reference, prediction))
        scores[name] = LabelScore(
            dice(first, second),
            hd95_mm(first, second, spacing_mm),
            int(np.count_nonzero(first)) * voxel_ml,
            int(np.count_nonzero(second)) * voxel_ml,
        )
    return scores


def score_case(
    reference: Path, prediction: Path, labels: Mapping[str, tuple[int, ...]], ignore: int | None = None
) -> dict[str, LabelScore]:
    """Scores of one predicted label map in the reference's native space.

    Raises:
        FileNotFoundError, ValueError: a file is absent or unreadable, or the two do not lie on the same voxels.
    """
    true, predicted = read_scan(reference), read_scan(prediction)
    difference = geometry_difference(predicted, true)
    if difference:
        raise ValueError(f"{prediction}: {difference} of the reference; predict in native space or resample it")
    return score_maps(
        read_labels(true, reference),
        read_labels(predicted, prediction),
        spacing_mm=true.GetSpacing()[::-1],
        labels=labels,
        ignore=ignore,
    )


def read_labels(scan: SimpleITK.Image, path: Path) -> np.ndarray:
    """Label map as a whole-number array (Z, Y, X); `path` only names it in the error for other values."""
    array = SimpleITK.GetArrayFromImage(scan)
    if array.dtype.kind != "f":
        return array
    whole = np.nan_to_num(array).astype(np.int32)
    if not np.array_equal(whole, array):
        raise ValueError(f"{path}: holds values that are not whole numbers; give a label map, not probabilities")
    return whole


def _directed_95(points: np.ndarray, target: np.ndarray) -> float:
    """95th percentile of the distances from `points` to the nearest of `target`, both (N, 3) mm."""
    # A tree of surface points: exact, and 2 to 20 times faster than a distance transform of the union box.
    tree = cKDTree(target, balanced_tree=False, compact_nodes=False)
    return float(np.percentile(tree.query(points)[0], 95))


def _mask(array: np.ndarray, values: tuple[int, ...]) -> np.ndarray:
    mask = array == values[0]
    for value in values[1:]:
        mask |= array == value
    return mask


def _union_box(boxes: Sequence[tuple[slice, ...] | None]) -> tuple[slice, ...]:
    """The smallest box around all given ones; an empty box where there is none."""
    found = [box for box in boxes if box is not None]
    if not found:
        return (slice(0, 0),) * 3
    return tuple(
        slice(min(box[axis].start for box in found), max(box[axis].stop for box in found)) for axis in range(3)
    )
