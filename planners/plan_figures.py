"""The pictures of `plan.html`: where the data set's spacings and sizes lie, and crops on its own scans."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIOWithReorient
from numpy.typing import NDArray

from nnssl.data.cropping import crop_to_nonzero
from nnssl.data.fingerprint import Fingerprint
from nnssl.data.intake import RawDataset
from nnssl.dataset_conversion.raw_dataset import Case
from nnssl.geometry import ScanSizes, depth_axis
from nnssl.planners.budgets import FinetunePlan, PretrainPlan
from nnssl.planners.crops import PretrainCrop, Spacing, nnunet_spacing
from nnssl.planners.storage import threedino_views
from nnssl.visualization.plan_pictures import Mark, histograms, slices_with_boxes

CROP_COLOUR, GLOBAL_COLOUR, LOCAL_COLOUR, NNUNET_COLOUR = "#ffb000", "#33c7ff", "#ff6ea9", "#555555"
MOST_EXAMPLES = 3


@dataclass(frozen=True)
class Picture:
    """One picture of the page."""

    png: bytes
    caption: str  # below it
    instead: str  # what it shows, for those who do not see it


def spacing_histogram(sizes: ScanSizes, finetune: FinetunePlan, pretrain: PretrainPlan) -> Picture:
    """Voxel sizes of the scans, with those that are stored."""
    marks = [
        Mark("nnU-Net's rule", _three(nnunet_spacing(sizes)), NNUNET_COLOUR, ":"),
        Mark("3d_fullres", finetune.geometry.spacing_mm, CROP_COLOUR),
        Mark("pretrain", pretrain.geometry.spacing_mm, GLOBAL_COLOUR, "--"),
    ]
    caption = "Edge lengths of the voxels as scanned, and what they are resampled to."
    return Picture(
        histograms(sizes.spacings, "spacing [mm]", marks), caption, _in_numbers(sizes.spacings, "spacing, mm")
    )


def extent_histogram(sizes: ScanSizes, finetune: FinetunePlan) -> Picture:
    """Physical sizes of the scans, with that of a crop of 3d_fullres."""
    crop = _sides_mm(finetune.geometry.crop, finetune.geometry.spacing_mm)
    extents = sizes.shapes * sizes.spacings
    caption = "Physical size of the scans without empty borders, and of a crop of 3d_fullres."
    png = histograms(extents, "size [mm]", [Mark("crop of 3d_fullres", crop, CROP_COLOUR)])
    return Picture(png, caption, _in_numbers(extents, "size, mm"))


def shape_histogram(sizes: ScanSizes) -> Picture:
    """Voxels of the scans as scanned."""
    caption = "Voxels along each axis as scanned, without empty borders."
    return Picture(histograms(sizes.shapes, "voxels", []), caption, _in_numbers(sizes.shapes, "voxels"))


def example_slices(
    raw: RawDataset, found: Fingerprint, finetune: FinetunePlan, pretrain: PretrainPlan
) -> list[Picture]:
    """The smallest, the median and the largest scan with their crops; scans that cannot be read again are left out."""
    cases = [case for case in raw.cases if case.identifier not in found.bad_cases]
    pictures = []
    for words, index in _examples(found.sizes):
        image = _read(cases[index])
        if image is None:
            continue
        spacing = found.spacings[index]
        boxes = crop_boxes(_sides_mm(image.shape, spacing), finetune, pretrain.geometry)
        size = f"{_by(image.shape)} voxels of {_by(spacing)} mm = {_by(_sides_mm(image.shape, spacing))} mm"
        told = f"{words}: {size}. " + "; ".join(f"{box.label} {_by(box.values)} mm" for box in boxes) + "."
        pictures.append(
            Picture(slices_with_boxes(image, spacing, boxes), told, f"Slices of {words.lower()} with crops")
        )
    return pictures


def crop_boxes(extent_mm: Sequence[float], finetune: FinetunePlan, pretrain: PretrainCrop) -> list[Mark]:
    """Crop of 3d_fullres, global and local view, in mm; resized views show shares of the scan, here the middle ones."""
    crop = Mark("crop of 3d_fullres", _sides_mm(finetune.geometry.crop, finetune.geometry.spacing_mm), CROP_COLOUR)
    if pretrain.limit is None:
        sides = [_sides_mm(view, pretrain.spacing_mm) for view in (pretrain.global_crop, pretrain.local_crop)]
        words = ("global crop of pretrain", "local crop")
    else:
        axis, sides = depth_axis(pretrain.spacing_mm), []
        for rule, _ in threedino_views(pretrain.global_crop, pretrain.local_crop):
            shares = [math.sqrt(sum(rule.area) / 2)] * 3
            shares[axis] = sum(rule.depth) / 2
            sides.append(_sides_mm(extent_mm, shares))
        words = ("global crop of pretrain, one of many sizes", "local crop, one of many sizes")
    styles = ((GLOBAL_COLOUR, "--"), (LOCAL_COLOUR, ":"))
    views = [Mark(word, side, *style) for word, side, style in zip(words, sides, styles, strict=True)]
    return [crop, *views]


def _examples(sizes: ScanSizes) -> list[tuple[str, int]]:
    """Which scans are shown: by physical volume."""
    order = np.argsort((sizes.shapes * sizes.spacings).prod(axis=1), kind="stable")
    last = len(order) - 1
    if last == 0:
        return [("The only scan", 0)]
    picks = {0: "The smallest scan", last // 2: "The median scan", last: "The largest scan"}
    if last == 1:
        picks = {0: "The smaller scan", 1: "The larger scan"}
    return [(picks[place], int(order[place])) for place in sorted(picks)]


def _read(case: Case) -> NDArray[np.float32] | None:
    """First channel (X, Y, Z) without empty borders."""
    try:
        images, _ = SimpleITKIOWithReorient().read_images([str(path) for path in case.images])
    except (RuntimeError, OSError):
        return None
    cropped, _, _ = crop_to_nonzero(images, None)
    return cropped[0].transpose(2, 1, 0)


def _sides_mm(voxels: Sequence[float], spacing_mm: Sequence[float]) -> Spacing:
    x, y, z = (float(side * size) for side, size in zip(voxels, spacing_mm, strict=True))
    return x, y, z


def _three(values: NDArray[np.float64]) -> Spacing:
    x, y, z = values.tolist()
    return x, y, z


def _by(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in values)


def _in_numbers(values: NDArray[np.float64], unit: str) -> str:
    """The histogram in words."""
    low, median, high = (np.percentile(values, share, axis=0).tolist() for share in (0, 50, 100))
    return f"Histograms ({unit}, X Y Z): smallest {_by(low)}, median {_by(median)}, largest {_by(high)}"
