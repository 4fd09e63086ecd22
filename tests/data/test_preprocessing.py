"""Stored volumes: what stock nnU-Net makes of a window, whole-image percentiles, labels or none, failing cases."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnssl.data.fingerprint import fingerprint
from nnssl.data.intake import open_dataset
from nnssl.data.preprocess_run import copy_labels, usable_cases
from nnssl.data.preprocessing import NnsslPlansManager, NnsslPreprocessor
from nnssl.data.stamp import check_stamp
from nnssl.encoders import encoder_spec
from nnssl.encoders.base import IntensityRange
from nnssl.planners.encoder_planner import EncoderPlanner
from tests.data.raw_scans import make_image, use_folders, write_dataset

PLANS = "nnsslPlans_vit_tiny_8"
WINDOW = IntensityRange("window", 100.0, 500.0)


def plan(name: str, intensity: IntensityRange | None = None) -> dict[str, Any]:
    fingerprint(open_dataset(name), processes=1)
    return EncoderPlanner(name, spec=encoder_spec("vit_tiny_8", intensity=intensity)).plan_experiment()


def run_case(preprocessor: DefaultPreprocessor, plans: PlansManager, folder: Path) -> tuple[Any, Any, Any]:
    images = [str(folder / "imagesTr" / "case_0_0000.nii.gz")]
    label = str(folder / "labelsTr" / "case_0.nii.gz")
    words = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "blob": 1}}
    return preprocessor.run_case(images, label, plans, plans.get_configuration("3d_fullres"), words)


def test_a_window_plan_gives_what_stock_nnunet_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob", cases=2)
    plans = plan("Dataset901_Blob", WINDOW)
    stock_plans = PlansManager(plans)
    assert stock_plans.get_configuration("3d_fullres").preprocessor_class is DefaultPreprocessor
    ours, our_seg, _ = run_case(NnsslPreprocessor(), NnsslPlansManager(plans), folder)
    stock, stock_seg, _ = run_case(DefaultPreprocessor(verbose=False), stock_plans, folder)
    assert np.abs(ours - stock).max() < 2e-6  # by matrices in float32, stock in float64
    assert np.mean(our_seg == stock_seg) > 0.9995  # stock breaks near ties in float16
    assert (ours.min(), ours.max()) == (0, 1)


def test_percentiles_are_those_of_the_whole_image_not_of_the_crop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob", cases=1)
    scan = np.zeros((40, 40, 40), dtype=np.float32)
    scan[10:30, 10:30, 10:30] = np.random.default_rng(0).uniform(100, 200, (20, 20, 20))
    path = folder / "imagesTr" / "case_0_0000.nii.gz"
    SimpleITK.WriteImage(make_image(scan, (1.0, 1.0, 1.0)), path)
    label = (scan > 150).astype(np.uint8)
    SimpleITK.WriteImage(make_image(label, (1.0, 1.0, 1.0)), folder / "labelsTr" / "case_0.nii.gz")
    plans = plan("Dataset901_Blob") | {}
    plans["configurations"]["3d_fullres"]["spacing"] = [1.0, 1.0, 1.0]  # no resampling
    data, _, _ = run_case(NnsslPreprocessor(), NnsslPlansManager(plans), folder)
    low, high = np.percentile(scan, (0.05, 99.95))
    expected = np.clip((scan - low) / (high - low), 0, 1)[10:30, 10:30, 10:30].transpose(2, 1, 0)
    assert low == 0
    assert np.abs(data[0] - expected).max() < 1e-6


def test_stored_cases_are_readable_by_stock_nnunet_and_stay_in_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob", cases=3)
    plans = plan("Dataset901_Blob")
    assert NnsslPreprocessor().run(901, "3d_fullres", PLANS, 1) == {}
    folder = str(tmp_path / "nnUNet_preprocessed/Dataset901_Blob" / f"{PLANS}_3d_fullres")
    assert infer_dataset_class(folder) is nnUNetDatasetBlosc2
    dataset = nnUNetDatasetBlosc2(folder)
    assert dataset.identifiers == ["case_0", "case_1", "case_2"]
    for name in dataset.identifiers:
        data, seg, _, properties = dataset.load_case(name)
        values = np.asarray(data[:])
        assert values.dtype == np.float32
        assert (values.min() >= 0, values.max() <= 1, values.max() > 0.9) == (True, True, True)
        assert data.shape == seg.shape
        assert len(properties["class_locations"][1]) > 0
    # the last case read has the largest size: axes are X Y Z
    expected = np.rint(np.array([22, 28, 20]) * [1.0, 1.0, 1.2] / plans["configurations"]["3d_fullres"]["spacing"])
    assert data.shape[1:] == tuple(expected)


def test_unlabelled_cases_are_stored_with_an_empty_list_of_locations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Bare", cases=2, labelled=False)
    plan("Dataset901_Bare")
    assert NnsslPreprocessor().run(901, "pretrain", PLANS, 1) == {}
    dataset = nnUNetDatasetBlosc2(str(tmp_path / "nnUNet_preprocessed/Dataset901_Bare" / f"{PLANS}_pretrain"))
    _, seg, _, properties = dataset.load_case("case_1")
    assert properties["class_locations"] == {}
    assert np.unique(seg[:]).tolist() == [0]


def test_a_case_that_fails_is_named_and_the_others_are_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob", cases=3)
    plan("Dataset901_Blob")
    (folder / "imagesTr" / "case_1_0000.nii.gz").write_bytes(b"broken after the check")
    failures = NnsslPreprocessor().run(901, "3d_fullres", PLANS, 1)
    assert list(failures) == ["case_1"]
    assert "\n" not in failures["case_1"]
    output = tmp_path / "nnUNet_preprocessed/Dataset901_Blob" / f"{PLANS}_3d_fullres"
    assert sorted(path.name for path in output.glob("*")) == sorted(
        f"case_{case}{ending}" for case in (0, 2) for ending in (".b2nd", "_seg.b2nd", ".pkl")
    )


def test_volumes_of_an_earlier_plan_do_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob", cases=1)
    plan("Dataset901_Blob")
    output = tmp_path / "nnUNet_preprocessed/Dataset901_Blob" / f"{PLANS}_3d_fullres"
    output.mkdir(parents=True)
    (output / "old.b2nd").write_bytes(b"")
    NnsslPreprocessor().run(901, "3d_fullres", PLANS, 1)
    assert not (output / "old.b2nd").exists()


def test_a_run_that_does_not_finish_leaves_no_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob", cases=2)
    plans, folder = plan("Dataset901_Blob"), tmp_path / "nnUNet_preprocessed/Dataset901_Blob"
    NnsslPreprocessor().run(901, "3d_fullres", PLANS, 1)
    check_stamp(folder, plans, "3d_fullres")
    with pytest.raises(ValueError, match="preprocessing did not finish"):
        check_stamp(folder, plans, "pretrain")

    def interrupted(*words: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(NnsslPreprocessor, "store_case", interrupted)  # Ctrl-C in the first case
    (folder / f"{PLANS}_3d_fullres" / "case_0.b2nd").unlink()
    with pytest.raises(KeyboardInterrupt):
        NnsslPreprocessor().run(901, "3d_fullres", PLANS, 1)
    with pytest.raises(ValueError, match="preprocessing did not finish"):
        check_stamp(folder, plans, "3d_fullres")


def test_unlabelled_cases_of_a_labelled_set_serve_pretraining_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob", cases=3)
    section = {
        f"case_{case}": {"images": [f"imagesTr/case_{case}_0000.nii.gz"], "label": f"labelsTr/case_{case}.nii.gz"}
        for case in range(3)
    }
    section["case_2"].pop("label")
    text = (folder / "dataset.json").read_text().rstrip().removesuffix("}")
    (folder / "dataset.json").write_text(text + f', "dataset": {section}}}'.replace("'", '"'))
    fingerprint(open_dataset(901), processes=1)
    raw = open_dataset(901)
    assert [case.identifier for case in usable_cases(raw, "3d_fullres")] == ["case_0", "case_1"]
    assert len(usable_cases(raw, "pretrain")) == 3
    copy_labels(raw)
    copied = tmp_path / "nnUNet_preprocessed/Dataset901_Blob/gt_segmentations"
    assert sorted(path.name for path in copied.iterdir()) == ["case_0.nii.gz", "case_1.nii.gz"]


def test_our_managers_survive_pickling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob", cases=1)
    manager = NnsslPlansManager(plan("Dataset901_Blob")).get_configuration("pretrain")
    assert pickle.loads(pickle.dumps(manager)).preprocessor_class is NnsslPreprocessor


def test_an_unknown_configuration_lists_the_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob", cases=1)
    with pytest.raises(ValueError, match="no configuration '2d'; has 3d_fullres, pretrain"):
        NnsslPlansManager(plan("Dataset901_Blob")).get_configuration("2d")
