"""Preprocessing of a data set: reruns do what changed, parts make the whole, failures leave nothing to train on."""

from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import SimpleITK
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnssl.data.case_store import PARTIAL, remove_partial, stored_key
from nnssl.data.fingerprint import fingerprint
from nnssl.data.intake import RawDataset, open_dataset
from nnssl.data.preprocess_run import PARTS, Request, run_cases
from nnssl.data.preprocessing import NnsslPlansManager, NnsslPreprocessor
from nnssl.data.stamp import check_stamp
from nnssl.encoders import encoder_spec
from nnssl.paths import preprocessed_folder
from nnssl.planners.encoder_planner import EncoderPlanner
from tests.data.raw_scans import make_image, use_folders, write_dataset

BOTH = ("3d_fullres", "pretrain")


class Prepared:
    """A planned toy data set; `run` preprocesses it, `files` are the stored files with their bytes."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, cases: int = 3) -> None:
        self.raw_folder = write_dataset(use_folders(root, monkeypatch), "Dataset901_Blob", cases=cases)
        self.plan()

    def plan(self) -> None:
        fingerprint(self.raw, processes=1)
        self.plans = EncoderPlanner("Dataset901_Blob", spec=encoder_spec("vit_tiny_8")).plan_experiment()
        self.folder = preprocessed_folder() / "Dataset901_Blob"

    @property
    def raw(self) -> RawDataset:
        return open_dataset("Dataset901_Blob")

    def run(self, *configurations: str, **words: Any) -> dict[str, str]:
        store, plans = NnsslPreprocessor().store_case, NnsslPlansManager(self.plans)
        return run_cases(store, self.raw, plans, Request(configurations or BOTH, **words))

    def output(self, configuration: str = "pretrain") -> Path:
        return self.folder / self.plans["configurations"][configuration]["data_identifier"]

    def files(self) -> dict[str, bytes]:
        found = [path for name in BOTH for path in self.output(name).rglob("*") if path.is_file()]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in found}

    def times(self) -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in self.output().glob("*.b2nd")}


def test_one_pass_stores_both_configurations_and_a_rerun_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Prepared(tmp_path, monkeypatch)
    assert data.run() == {}
    first, times = data.files(), data.times()
    assert len(first) == 2 * 3 * 3
    assert data.run() == {}
    assert (data.files(), data.times()) == (first, times)
    for name in BOTH:
        check_stamp(data.folder, data.plans, name)


def test_pretraining_volumes_are_half_precision_and_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Prepared(tmp_path, monkeypatch, cases=1)
    data.run()
    for name, dtype in (("3d_fullres", np.float32), ("pretrain", np.float16)):
        values, labels, _, _ = nnUNetDatasetBlosc2(str(data.output(name))).load_case("case_0")
        assert (values.dtype, labels.dtype) == (dtype, np.int16)
        assert (float(values[:].min()), float(values[:].max())) == (0, 1)


def test_a_large_scan_is_stored_within_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Prepared(tmp_path, monkeypatch, cases=1)
    data.plans["configurations"]["pretrain"] |= {"stored_limit": [11, 11, 9], "depth_axis": 2}
    data.run("pretrain")
    plane = data.raw_folder / "imagesTr" / "case_0_0000.nii.gz"  # 20 x 26 x 18 voxels
    assert SimpleITK.ReadImage(plane).GetSize() == (20, 26, 18)
    values = blosc2.open(str(data.output() / "case_0.b2nd"))
    assert values.shape == (1, 8, 11, 9)  # 20 * 11 / 26 = 8.5, rounded to even


def test_a_changed_scan_a_new_one_and_a_removed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Prepared(tmp_path, monkeypatch)
    data.run()
    before, times = data.files(), data.times()
    images, labels = data.raw_folder / "imagesTr", data.raw_folder / "labelsTr"
    scan = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(images / "case_1_0000.nii.gz"))
    SimpleITK.WriteImage(make_image(scan[:, :, ::-1].copy()), images / "case_1_0000.nii.gz")
    for kind, folder in (("_0000", images), ("", labels)):
        (folder / f"case_2{kind}.nii.gz").rename(folder / f"case_9{kind}.nii.gz")
    fingerprint(data.raw, processes=1)
    assert data.run() == {}
    assert {name for name, time in data.times().items() if times.get(name) == time} == {
        "case_0.b2nd",
        "case_0_seg.b2nd",
    }
    assert sorted(path.stem for path in data.output().glob("*.pkl")) == ["case_0", "case_1", "case_9"]
    changed = {name for name, content in data.files().items() if before.get(name) != content}
    assert {"case_0" in name for name in changed} == {False}


def test_another_plan_redoes_its_own_configuration_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Prepared(tmp_path, monkeypatch, cases=2)
    data.run()
    times = data.times()
    full = {path: stored_key(data.output("3d_fullres"), path) for path in ("case_0", "case_1")}
    data.plans["configurations"]["3d_fullres"]["spacing"] = [1.5, 1.5, 1.5]
    data.run()
    assert data.times() == times
    assert all(stored_key(data.output("3d_fullres"), path) != key for path, key in full.items())


def test_parts_in_any_order_make_the_same_files_and_only_the_last_writes_the_stamp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Prepared(tmp_path, monkeypatch)
    data.run()
    whole = data.files()
    for path in whole:
        (data.folder / path).unlink()
    for number in (2, 0):
        data.run(part=(number, 3))
        with pytest.raises(ValueError, match="did not finish"):
            check_stamp(data.folder, data.plans, "pretrain")
    data.run(part=(1, 3))
    check_stamp(data.folder, data.plans, "pretrain")
    assert data.files() == whole
    assert not (data.output() / PARTS).exists()


def test_a_case_that_fails_leaves_nothing_of_an_earlier_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Prepared(tmp_path, monkeypatch)
    data.run()
    (data.raw_folder / "imagesTr" / "case_1_0000.nii.gz").write_bytes(b"broken after the check")
    assert list(data.run()) == ["case_1"]
    assert sorted(path.stem for path in data.output().glob("*.pkl")) == ["case_0", "case_2"]
    check_stamp(data.folder, data.plans, "pretrain")  # tried, and left out of training


def test_fail_fast_stops_at_the_first_failure_and_writes_no_stamp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Prepared(tmp_path, monkeypatch)
    (data.raw_folder / "imagesTr" / "case_0_0000.nii.gz").write_bytes(b"broken after the check")
    assert list(data.run(fail_fast=True)) == ["case_0"]
    assert not list(data.output().glob("*.b2nd"))
    with pytest.raises(ValueError, match="did not finish"):
        check_stamp(data.folder, data.plans, "pretrain")


def test_an_incomplete_case_is_done_again_and_what_a_kill_left_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Prepared(tmp_path, monkeypatch, cases=2)
    data.run()
    whole = data.files()
    (data.output() / "case_0.b2nd").unlink()
    (data.output() / "case_1.pkl").unlink()
    left = data.output() / PARTIAL / "case_0.abcd1234"
    left.mkdir(parents=True)
    (left / "case_0.pkl").write_bytes(b"half")
    assert data.run() == {}
    assert data.files() == whole


def test_only_own_partial_folders_are_removed(tmp_path: Path) -> None:
    for name in ("a.x1", "b.x2"):
        (tmp_path / PARTIAL / name).mkdir(parents=True)
    remove_partial(tmp_path, ["a"])
    assert [path.name for path in (tmp_path / PARTIAL).iterdir()] == ["b.x2"]
    remove_partial(tmp_path, ["b"])
    assert not (tmp_path / PARTIAL).exists()
