"""A tiny labelled data set with hand-written plans, preprocessed by nnU-Net's own code, for tests of fine-tuning."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from nnssl.data.stamp import write_stamp

NAME = "Dataset777_Toy"
PLANS = "nnsslPlans_vit_tiny_8"
ENCODER = "vit_tiny_8"
CROP = [16, 24, 16]
NATIVE_CROP = [16, 16, 16]
LOW, HIGH = -100.0, 300.0
SIZE = (22, 24, 16)  # voxels, X Y Z


def set_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net's folders inside a temporary folder; data loading in this process."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(folder / name))
        (folder / name).mkdir(exist_ok=True)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_def_n_proc", "1")


def write_raw(folder: Path, cases: int = 5, labels: dict[str, int] | None = None) -> Path:
    """A raw data set of bright balls (label 1) with a brighter half (label 2) on noise."""
    raw = folder / "nnUNet_raw" / NAME
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True, exist_ok=True)
    for number in range(cases):
        image, label = _ball(np.random.RandomState(number))
        for array, path in ((image, f"imagesTr/toy_{number:03d}_0000"), (label, f"labelsTr/toy_{number:03d}")):
            scan = SimpleITK.GetImageFromArray(array.transpose(2, 1, 0))
            scan.SetSpacing((1.0, 1.5, 2.0))
            scan.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))  # stored in another orientation than RAS
            SimpleITK.WriteImage(scan, str(raw / f"{path}.nii.gz"))
    dataset_json = {
        "channel_names": {"0": "CT"},
        "labels": labels or {"background": 0, "Ball": 1, "Half": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
        "dataset": {"secret_subject": {"images": ["/secret/path/image.nii.gz"], "label": "/secret/path/label.nii.gz"}},
    }
    (raw / "dataset.json").write_text(json.dumps(dataset_json))
    return raw


def write_preprocessed(folder: Path, raw: Path, **changes: Any) -> Path:
    """Preprocess with nnU-Net's DefaultPreprocessor by hand-written plans; `changes` go to the fine-tuning recipe."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    target = folder / "nnUNet_preprocessed" / NAME
    shutil.copytree(raw / "labelsTr", target / "gt_segmentations")
    shutil.copy(raw / "dataset.json", target)
    dataset_json = json.loads((raw / "dataset.json").read_text())
    plans = toy_plans(**changes)
    (target / f"{PLANS}.json").write_text(json.dumps(plans))
    (target / "dataset_fingerprint.json").write_text("{}")
    manager = PlansManager(plans)
    configuration = manager.get_configuration("3d_fullres")
    stored = target / configuration.data_identifier
    stored.mkdir()
    for label in sorted((raw / "labelsTr").glob("*.nii.gz")):
        case = label.name.removesuffix(".nii.gz")
        image = raw / "imagesTr" / f"{case}_0000.nii.gz"
        DefaultPreprocessor(verbose=False).run_case_save(
            str(stored / case), [str(image)], str(label), manager, configuration, dataset_json
        )
    write_stamp(target, plans, "3d_fullres")
    return target


def toy_plans(**recipe: Any) -> dict[str, Any]:
    """Plans in the layout that nnssl_plan_and_preprocess writes, window intensity, two short epochs."""
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    intensity = {"kind": "window", "low": LOW, "high": HIGH, "encoder_range": [-1.0, 1.0]}
    statistics = {"mean": LOW, "std": HIGH - LOW, "percentile_00_5": LOW, "percentile_99_5": HIGH}
    configuration = {
        "data_identifier": f"{PLANS}_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": CROP,
        "median_image_size_in_voxels": list(SIZE),
        "spacing": [1.0, 1.5, 2.0],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        "batch_dice": False,
        "architecture": {
            "network_class_name": "nnssl.networks.segmentor.EncoderSegmentor",
            "arch_kwargs": {
                "encoder": ENCODER,
                "decoder": "unet",
                "native_crop": NATIVE_CROP,
                "encoder_range": [-1.0, 1.0],
                "adapter_width": 24,
                "frozen": True,
                "precision": "fp32",
            },
            "_kw_requires_import": [],
        },
    }
    finetune = {"epochs": 2, "iterations_per_epoch": 2, "val_iterations": 1, "lr": 1e-3, "warmup_fraction": 0.0}
    return {
        "dataset_name": NAME,
        "plans_name": PLANS,
        "original_median_spacing_after_transp": [1.0, 1.5, 2.0],
        "original_median_shape_after_transp": list(SIZE),
        "image_reader_writer": "SimpleITKIOWithReorient",
        "transpose_forward": [2, 1, 0],
        "transpose_backward": [2, 1, 0],
        "configurations": {"3d_fullres": configuration, "pretrain": {**configuration}},
        "experiment_planner_used": "EncoderPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": statistics},
        "nnssl": {
            "version": 1,
            "encoder": ENCODER,
            "native_crop": NATIVE_CROP,
            "intensity": intensity,
            "orientation": "RAS",
            "axes": "XYZ",
            "decisions": [],
            "finetune": {**finetune, **recipe},
        },
    }


def _ball(random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    grid = np.stack(np.meshgrid(*[np.arange(side) for side in SIZE], indexing="ij"))
    centre = np.array([side / 2 for side in SIZE]) + random.uniform(-2, 2, 3)
    inside = ((grid - centre[:, None, None, None]) ** 2).sum(0) < 6**2
    label = inside.astype(np.uint8)
    label[inside & (grid[2] > centre[2])] = 2
    image = random.normal(0, 20, SIZE) + 100 * (label > 0) + 80 * (label == 2)
    return image.astype(np.float32), label
