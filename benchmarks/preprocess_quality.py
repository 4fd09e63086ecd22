"""What preprocessing kept: images against cubic splines in float64, label maps through native space and back."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np

WINDOW = (-500.0, 500.0)
STOCK = {"order_z": 0, "force_separate_z": None}


class Job(NamedTuple):
    """One side of one data set."""

    side: str
    raw: Path  # folder of the data set
    spacing_mm: tuple[float, float, float]
    output: Path


def quality(jobs: Sequence[Job], cases: Sequence[str]) -> dict[str, Any]:
    """Mean and lowest PSNR (dB) of both sides to float64, and per label the Dice of both round trips."""
    psnr: dict[str, list[float]] = {job.side: [] for job in jobs}
    dice: dict[str, dict[int, list[float]]] = {job.side: {} for job in jobs}
    for case in cases:
        images, labels, spacing_mm = native(jobs[0], case)
        for job in jobs:
            stored, marked = stored_case(job, case)
            psnr[job.side].append(_psnr(stored[0], reference(images, stored.shape[1:], spacing_mm, job)[0]))
            back = round_trip(marked, labels.shape[1:], spacing_mm, job)
            for label in np.unique(labels[labels > 0]).tolist():
                dice[job.side].setdefault(label, []).append(_dice(back == label, labels[0] == label))
    means = {side: {label: mean(values) for label, values in found.items()} for side, found in dice.items()}
    return {
        "psnr_db": {side: [mean(values), min(values)] for side, values in psnr.items()},
        "round_trip_dice": means,
        "largest_loss_of_dice": max(means["stock"][label] - means["ours"][label] for label in means["stock"]),
    }


def native(job: Job, case: str) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Scaled image (1, X, Y, Z), label map with -1 outside, spacing: before resampling."""
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIOWithReorient

    from nnssl.data.preprocessing import NnsslPlansManager, NnsslPreprocessor

    reader, plans = SimpleITKIOWithReorient(), NnsslPlansManager(plans_of(job))
    images, properties = reader.read_images([str(job.raw / "imagesTr" / f"{case}_0000.nii.gz")])
    labels = reader.read_seg(str(job.raw / "labelsTr" / f"{case}.nii.gz"))[0]
    configuration = plans.get_configuration("3d_fullres")
    scan = NnsslPreprocessor().prepare(images, labels, properties, plans, configuration)
    return scan.images, scan.labels, scan.spacing_mm


def reference(images: np.ndarray, shape: Sequence[int], spacing_mm: list[float], job: Job) -> np.ndarray:
    """Cubic splines in float64 along all three axes."""
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    return resample_data_or_seg_to_shape(
        images.astype(np.float64), shape, spacing_mm, job.spacing_mm, order=3, force_separate_z=False
    )


def round_trip(marked: np.ndarray, shape: Sequence[int], spacing_mm: list[float], job: Job) -> np.ndarray:
    """Stored labels as one-hot probabilities, back in native voxels by the function that the plan names for that."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    values = [int(value) for value in np.unique(marked) if value >= 0]
    hot = np.stack([np.maximum(marked[0], 0) == value for value in values]).astype(np.float32)
    export = PlansManager(plans_of(job)).get_configuration("3d_fullres").resampling_fn_probabilities
    return np.array(values)[np.asarray(export(hot, shape, job.spacing_mm, spacing_mm)).argmax(0)]


def stored_case(job: Job, case: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels as they were stored."""
    import blosc2

    return tuple(blosc2.open(str(job.output / f"{case}{ending}.b2nd"))[:] for ending in ("", "_seg"))  # type: ignore[return-value]


def plans_of(job: Job) -> dict[str, Any]:
    """A plans file of one configuration: the resampling functions are each side's own, all else is equal."""
    from nnssl.planners.plans_file import export_resampling, resampling
    from nnssl.transforms.stored_intensity import as_channel_properties

    data, data_words, seg, seg_words = resampling()
    export, export_words = export_resampling()
    names = (data.__name__, seg.__name__, export.__name__)
    words = (data_words, seg_words, export_words)
    if job.side == "stock":
        names = ("resample_data_or_seg_to_shape",) * 3
        words = tuple(
            {"is_seg": is_seg, "order": order, **STOCK} for is_seg, order in ((False, 3), (True, 1), (False, 1))
        )
    configuration = {
        "data_identifier": "benchmark",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [96, 96, 96],
        "spacing": list(job.spacing_mm),
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {"network_class_name": "none", "arch_kwargs": {}, "_kw_requires_import": []},
    }
    for what, name, own in zip(("data", "seg", "probabilities"), names, words, strict=True):
        configuration |= {f"resampling_fn_{what}": name, f"resampling_fn_{what}_kwargs": own}
    return {
        "dataset_name": job.raw.name,
        "plans_name": "benchmark",
        "image_reader_writer": "SimpleITKIOWithReorient",
        "transpose_forward": [2, 1, 0],
        "transpose_backward": [2, 1, 0],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": as_channel_properties([WINDOW]),
        "configurations": {"3d_fullres": configuration},
    }


def _psnr(values: np.ndarray, wanted: np.ndarray) -> float:
    error = np.mean((values.astype(np.float64) - wanted) ** 2)
    return float(-10 * np.log10(max(error, 1e-20)))


def _dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))
