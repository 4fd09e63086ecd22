"""Fingerprints: nnU-Net's extractor as a peer, axes of the files, bad cases, reuse."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnssl.data.fingerprint import analyse_case, fingerprint, load_fingerprint
from nnssl.data.intake import open_dataset
from tests.data.raw_scans import SPACING, make_image, reorient, use_folders, write_dataset


def test_sizes_agree_with_nnunets_extractor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    folder = write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob")
    ours = fingerprint(open_dataset(901), processes=1).as_stock()
    for index in range(4):
        image, label = folder / "imagesTr" / f"case_{index}_0000.nii.gz", folder / "labelsTr" / f"case_{index}.nii.gz"
        shape, spacing, *_ = DatasetFingerprintExtractor.analyze_case([str(image)], str(label), SimpleITKIO, 100)
        assert ours["shapes_after_crop"][index] == list(shape)
        assert ours["spacings"][index] == pytest.approx(spacing)
    assert ours["median_relative_size_after_cropping"] == 1


def test_foreground_intensities_are_those_under_the_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob", cases=1)
    found = fingerprint(open_dataset(901), processes=1).intensities["0"]
    scan = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(folder / "imagesTr" / "case_0_0000.nii.gz"))
    inside = scan[scan > np.percentile(scan, 80)]
    assert found["min"] >= inside.min()
    assert found["mean"] == pytest.approx(inside.mean(), rel=0.02)
    assert found["std"] == pytest.approx(inside.std(), rel=0.05)


def test_permuted_and_flipped_files_give_the_same_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = use_folders(tmp_path, monkeypatch)
    folder = write_dataset(raw, "Dataset901_Blob", cases=2, labelled=False)
    turned = raw / "Dataset902_Turned"
    for index, orientation in enumerate(("LSP", "SAR")):
        name = f"imagesTr/case_{index}_0000.nii.gz"
        reorient(folder / name, turned / name, orientation)
    (turned / "dataset.json").write_text((folder / "dataset.json").read_text())
    first, second = (fingerprint(open_dataset(number), processes=1) for number in (901, 902))
    assert first.shapes == second.shapes
    assert np.allclose(first.spacings, second.spacings)
    assert first.spacings[0] == pytest.approx(SPACING)


def test_the_stock_file_speaks_the_axes_of_the_raw_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # stock readers do not reorient: a stock planner that finds our file must not mix up axes
    raw = use_folders(tmp_path, monkeypatch)
    folder = write_dataset(raw, "Dataset901_Blob", cases=1, labelled=False)
    name = "imagesTr/case_0_0000.nii.gz"
    reorient(folder / name, raw / "Dataset902_Turned" / name, "SLA")
    (raw / "Dataset902_Turned" / "dataset.json").write_text((folder / "dataset.json").read_text())
    fingerprint(open_dataset(902), processes=1)
    stock = json.loads((tmp_path / "nnUNet_preprocessed/Dataset902_Turned/dataset_fingerprint.json").read_text())
    image = SimpleITK.ReadImage(raw / "Dataset902_Turned" / name)
    assert stock["shapes_after_crop"] == [list(image.GetSize()[::-1])]
    assert stock["spacings"][0] == pytest.approx(image.GetSpacing()[::-1])


def test_a_fingerprint_of_nnunet_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob", cases=2)
    path = tmp_path / "nnUNet_preprocessed/Dataset901_Blob/dataset_fingerprint.json"
    fingerprint(open_dataset(901), processes=1)
    assert len(json.loads(path.read_text())["spacings"]) == 2
    (folder / "imagesTr" / "case_1_0000.nii.gz").unlink()  # ours follows the data
    fingerprint(open_dataset(901), processes=1)
    assert len(json.loads(path.read_text())["spacings"]) == 1
    path.write_text('{"spacings": []}')
    (folder / "imagesTr" / "case_0_0000.nii.gz").touch()
    fingerprint(open_dataset(901), processes=1)
    assert json.loads(path.read_text()) == {"spacings": []}


def test_bad_cases_are_listed_and_the_others_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob", cases=5)
    images = folder / "imagesTr"
    (images / "case_0_0000.nii.gz").write_bytes((images / "case_0_0000.nii.gz").read_bytes()[:2000])
    broken = np.full((18, 26, 20), np.nan, dtype=np.float32)
    SimpleITK.WriteImage(make_image(broken), images / "case_3_0000.nii.gz")
    found = fingerprint(open_dataset(901), processes=1)
    assert list(found.bad_cases) == ["case_0", "case_3"]
    assert len(found.shapes) == 3
    for name, problems in found.bad_cases.items():
        assert name in problems[0]
        assert "\n" not in problems[0]
        assert f"{name}_0000.nii.gz" in problems[0] and str(tmp_path) not in problems[0]


def test_nothing_usable_is_an_error_with_the_first_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob", cases=1)
    SimpleITK.WriteImage(make_image(np.ones((9, 9, 9), dtype=np.float32)), folder / "imagesTr" / "case_0_0000.nii.gz")
    with pytest.raises(ValueError, match=r"none of its 1 cases is usable.*constant image"):
        fingerprint(open_dataset(901), processes=1)


def test_an_unchanged_data_set_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob", cases=2)
    first = fingerprint(open_dataset(901), processes=1)
    path = tmp_path / "nnUNet_preprocessed/Dataset901_Blob/nnssl_fingerprint.json"
    written = path.stat().st_mtime_ns
    assert fingerprint(open_dataset(901), processes=1) == first == load_fingerprint("Dataset901_Blob")
    assert path.stat().st_mtime_ns == written
    (folder / "imagesTr" / "case_1_0000.nii.gz").unlink()
    (folder / "labelsTr" / "case_1.nii.gz").unlink()
    assert len(fingerprint(open_dataset(901), processes=1).shapes) == 1


def test_nonzero_voxels_are_the_foreground_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = use_folders(tmp_path, monkeypatch)
    folder = write_dataset(raw, "Dataset901_Bare", cases=1, labelled=False)
    scan = np.zeros((12, 14, 16), dtype=np.float32)
    scan[2:10, 3:11, 4:12] = np.random.default_rng(0).uniform(5, 9, (8, 8, 8))
    SimpleITK.WriteImage(make_image(scan), folder / "imagesTr" / "case_0_0000.nii.gz")
    facts = analyse_case(open_dataset(901).cases[0], open_dataset(901).dataset_json)
    assert not isinstance(facts, list)
    assert facts.shape == (8, 8, 8)
    assert facts.samples[0].min() >= 5
