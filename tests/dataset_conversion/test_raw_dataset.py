"""Raw folders: what is listed, and that every kind of bad file is named, all at once."""

import gzip
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnssl.dataset_conversion.raw_dataset import (
    Case,
    check_case,
    check_raw_dataset,
    list_cases,
    load_dataset_json,
    write_dataset_json,
)
from nnssl.paths import load_json, save_json

SHAPE = (24, 20, 16)
REGIONS = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine), path)


def scan(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def labels(seed: int, values: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, values, size=SHAPE).astype(np.uint8)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Three labelled cases of two channels, and one test case."""
    folder = tmp_path / "Dataset900_Toy"
    for i, name in enumerate(("a", "b", "c")):
        for channel in range(2):
            save(folder / "imagesTr" / f"{name}_{channel:04d}.nii.gz", scan(10 * i + channel))
        save(folder / "labelsTr" / f"{name}.nii.gz", labels(i))
    for channel in range(2):
        save(folder / "imagesTs" / f"t_{channel:04d}.nii.gz", scan(90 + channel))
    write_dataset_json(folder, {"0": "FLAIR", "1": "T1"}, {"background": 0, "x": 1, "y": 2}, 3)
    return folder


def only_problem(folder: Path) -> str:
    problems = check_raw_dataset(folder, workers=1)
    assert len(problems) == 1, problems
    assert "\n" not in problems[0]
    return problems[0]


def test_good_folder_has_no_problem_and_lists_the_cases_nnunet_lists(raw: Path) -> None:
    assert check_raw_dataset(raw, workers=1) == []
    cases = list_cases(raw, load_dataset_json(raw))
    theirs = get_filenames_of_train_images_and_targets(str(raw), load_json(raw / "dataset.json"))
    assert {case.identifier: [str(path) for path in case.images] for case in cases} == {
        name: entry["images"] for name, entry in theirs.items()
    }
    assert [str(case.label) for case in cases] == [entry["label"] for entry in theirs.values()]


def test_dataset_section_lists_the_files_nnunet_lists(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNSSL_TEST_PLACE", "imagesTr")
    section = {
        "z": {
            "images": ["$NNSSL_TEST_PLACE/a_0000.nii.gz", str(raw / "imagesTr/a_0001.nii.gz")],
            "label": "labelsTr/a.nii.gz",
        }
    }
    save_json({**load_json(raw / "dataset.json"), "dataset": section, "numTraining": 1}, raw / "dataset.json")
    [case] = list_cases(raw, load_dataset_json(raw))
    theirs = get_filenames_of_train_images_and_targets(str(raw), load_json(raw / "dataset.json"))["z"]
    assert [str(path) for path in case.images] == theirs["images"]
    assert str(case.label) == theirs["label"]
    assert check_raw_dataset(raw, workers=1) == []


def test_folder_without_labels_is_unlabelled(raw: Path) -> None:
    shutil.rmtree(raw / "labelsTr")
    assert [case.label for case in list_cases(raw, load_dataset_json(raw))] == [None] * 3
    assert check_raw_dataset(raw, workers=1) == []


def test_empty_images_folder_is_an_error_that_names_it(raw: Path) -> None:
    shutil.rmtree(raw / "imagesTr")
    with pytest.raises(FileNotFoundError, match=r"imagesTr: no image CASE_0000\.nii\.gz"):
        list_cases(raw, load_dataset_json(raw))


@pytest.mark.parametrize("kept", [0.3, 0.6, -4])
def test_truncated_nii_gz_is_named(raw: Path, kept: float) -> None:
    path = raw / "imagesTr" / "b_0001.nii.gz"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if kept > 0 else int(kept)])
    assert "b_0001.nii.gz" in only_problem(raw)
    assert "truncated" in only_problem(raw)


def test_flipped_byte_inside_nii_gz_is_found_by_its_checksum(raw: Path) -> None:
    path = raw / "labelsTr" / "b.nii.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    assert "b.nii.gz: truncated or corrupt gzip file" in only_problem(raw)


@pytest.mark.parametrize("ending", [".nii", ".nrrd", ".mha"])
def test_truncated_file_of_other_endings_is_named(raw: Path, ending: str) -> None:
    path = raw / "imagesTr" / f"a_0000{ending}"
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(raw / "imagesTr/a_0000.nii.gz")), str(path))
    whole = Case("a", (path, path), None)
    assert check_case(whole, load_dataset_json(raw)) == []
    path.write_bytes(path.read_bytes()[:5000])
    assert all(f"a_0000{ending}" in problem for problem in check_case(whole, load_dataset_json(raw)))
    assert len(check_case(whole, load_dataset_json(raw))) == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_voxel_that_is_not_finite_is_named(raw: Path, value: float) -> None:
    voxels = scan(1)
    voxels[3, 4, 5] = value
    save(raw / "imagesTr" / "a_0001.nii.gz", voxels)  # ITK would read 0 there
    assert "a_0001.nii.gz: 1 NaN or Inf voxels" in only_problem(raw)


def test_voxel_that_is_not_finite_is_named_in_other_formats(raw: Path) -> None:
    voxels = scan(1)
    voxels[3, 4, 5] = np.nan
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), str(raw / "x.nrrd"))
    case = Case("x", (raw / "x.nrrd",), None)
    assert "x.nrrd: 1 NaN or Inf voxels" in check_case(case, {"channel_names": {"0": "A"}, "labels": {}})[0]


def test_constant_image_is_named(raw: Path) -> None:
    save(raw / "imagesTs" / "t_0000.nii.gz", np.full(SHAPE, 7, np.int16))
    assert "t_0000.nii.gz: constant image, every voxel is 7" in only_problem(raw)


def test_4d_file_is_refused_with_its_size(raw: Path) -> None:
    save(raw / "imagesTr" / "a_0001.nii.gz", scan(1, (*SHAPE, 2)))
    assert "size 24x20x16x2" in only_problem(raw)


GEOMETRY = [
    ("shape", (24, 20, 15), np.diag([1.0, 1.0, 2.0, 1.0])),
    ("spacing", SHAPE, np.diag([1.0, 1.0, 2.5, 1.0])),
    ("direction", SHAPE, np.diag([1.0, -1.0, 2.0, 1.0])),
    ("origin", SHAPE, np.array([[1.0, 0, 0, 5.0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])),
]


@pytest.mark.parametrize(("what", "shape", "affine"), GEOMETRY)
def test_channel_on_other_voxels_is_named(raw: Path, what: str, shape: tuple[int, ...], affine: np.ndarray) -> None:
    save(raw / "imagesTr" / "c_0001.nii.gz", scan(1, shape), affine)
    assert f"c_0001.nii.gz: {what} (" in only_problem(raw)


@pytest.mark.parametrize(("what", "shape", "affine"), GEOMETRY)
def test_label_on_other_voxels_is_named(raw: Path, what: str, shape: tuple[int, ...], affine: np.ndarray) -> None:
    save(raw / "labelsTr" / "c.nii.gz", np.ones(shape, np.uint8), affine)
    assert f"c.nii.gz: {what} (" in only_problem(raw)


def test_origin_within_half_a_voxel_is_accepted(raw: Path) -> None:
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[0, 3] = 0.4
    save(raw / "imagesTr" / "c_0001.nii.gz", scan(1), affine)
    assert check_raw_dataset(raw, workers=1) == []


def test_undeclared_label_value_is_named_with_the_declared_ones(raw: Path) -> None:
    save(raw / "labelsTr" / "a.nii.gz", labels(0, 5))
    assert "label value(s) 3, 4 are not in dataset.json, which allows 0, 1, 2" in only_problem(raw)


def test_float_labels_pass_only_with_whole_numbers(raw: Path) -> None:
    save(raw / "labelsTr" / "a.nii.gz", labels(0).astype(np.float32))
    assert check_raw_dataset(raw, workers=1) == []
    save(raw / "labelsTr" / "a.nii.gz", labels(0) + np.float32(0.5))
    assert "holds 0.5; allowed are whole numbers" in only_problem(raw) or "holds 2.5" in only_problem(raw)


def test_regions_and_ignore_values_are_declared_values(raw: Path) -> None:
    values = {"channel_names": {"0": "A", "1": "B"}, "labels": REGIONS, "numTraining": 3, "file_ending": ".nii.gz"}
    save_json({**values, "regions_class_order": [1, 2]}, raw / "dataset.json")
    save(raw / "labelsTr" / "a.nii.gz", labels(0, 4))
    assert check_raw_dataset(raw, workers=1) == []
    assert LabelManager(REGIONS, [1, 2]).ignore_label == 3


def test_names_that_do_not_belong_together_are_all_listed(raw: Path) -> None:
    (raw / "imagesTr" / "b_0001.nii.gz").unlink()
    (raw / "labelsTr" / "c.nii.gz").unlink()
    save(raw / "labelsTr" / "lost.nii.gz", labels(0))
    save(raw / "imagesTr" / "a_0002.nii.gz", scan(0))
    save(raw / "imagesTr" / "a.nii.gz", scan(0))
    (raw / "imagesTr" / "._a_0000.nii.gz").write_bytes(b"macOS")
    problems = sorted(check_raw_dataset(raw, workers=1))
    assert [Path(problem.partition(":")[0]).name for problem in problems] == [
        "a.nii.gz", "a_0002.nii.gz", "b_0001.nii.gz", "c.nii.gz", "lost.nii.gz",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"file_ending": None}, "key 'file_ending' is missing"),
        ({"file_ending": ".jpg"}, "file_ending '.jpg' is not supported"),
        ({"channel_names": {"0": "A", "2": "B"}}, "without gaps"),
        ({"labels": {"x": 1}}, "'background': 0"),
        ({"labels": {"background": 0, "x": 2}}, "consecutive"),
        ({"labels": {"background": 0, "x": 1.5}}, "whole number"),
        ({"labels": {"background": 0, "x": "1"}}, "whole number"),
        ({"labels": {"background": 0, "x": [0, 1]}}, "0 is the background"),
        ({"labels": {"background": 0, "ignore": 1, "x": 2}}, "highest value, here 2"),
        ({"labels": {"background": 0, "x": [1, 2], "y": [2]}}, "regions_class_order must list 2 values"),
        ({"labels": {"background": 0, "x": [1, 2], "y": [2]}, "regions_class_order": [1, 3]}, "holds [3]; allowed are"),
        ({"labels": {"background": 0, "x": [1, 2], "y": [2]}, "regions_class_order": [0, "2"]}, "holds [0, '2']"),
        ({"labels": REGIONS, "regions_class_order": [1, 3]}, "holds [3]; allowed are the label values [1, 2]"),
        ({"dataset": ["a"]}, "'dataset' must map each case to {'images': [paths], 'label': path}, got list"),
        ({"dataset": {"a": {"images": [7]}}}, "'dataset' entry 'a' must be {'images': [paths]"),
        ({"dataset": {"a": {"images": [], "label": 7}}}, "'dataset' entry 'a' must be"),
        ({"dataset": {"a": "imagesTr/a_0000.nii.gz"}}, "'dataset' entry 'a' must be"),
        ({"numTraining": "3"}, "numTraining is '3'"),
    ],
)
def test_wrong_dataset_json_is_refused_in_one_line(raw: Path, change: dict, words: str) -> None:
    values = {key: value for key, value in {**load_json(raw / "dataset.json"), **change}.items() if value is not None}
    save_json(values, raw / "dataset.json")
    with pytest.raises(ValueError, match=r"dataset\.json") as caught:
        load_dataset_json(raw)
    assert words in str(caught.value)
    assert any(words in problem for problem in check_raw_dataset(raw, workers=1))


def test_bad_entries_of_a_section_are_listed_together_with_the_scans_of_the_good_ones(raw: Path) -> None:
    good = {"images": [f"imagesTr/a_{channel:04d}.nii.gz" for channel in range(2)], "label": "labelsTr/a.nii.gz"}
    section = {"a": good, "b": {"images": "imagesTr/b_0000.nii.gz"}, "c": None}
    save_json({**load_json(raw / "dataset.json"), "dataset": section}, raw / "dataset.json")
    save(raw / "imagesTr" / "a_0000.nii.gz", np.zeros(SHAPE, np.float32))
    save(raw / "imagesTs" / "t_0000.nii.gz", np.zeros(SHAPE, np.float32))
    problems = check_raw_dataset(raw, workers=1)
    assert ["entry 'b'" in problems[0], "entry 'c'" in problems[1]] == [True, True]
    assert ["a_0000.nii.gz" in problems[2], "t_0000.nii.gz" in problems[3]] == [True, True]
    assert len(problems) == 4
    with pytest.raises(ValueError, match=r"entry 'b'.*entry 'c'"):
        list_cases(raw, load_json(raw / "dataset.json"))


def test_a_section_that_is_a_list_does_not_hide_the_test_scans(raw: Path) -> None:
    save_json({**load_json(raw / "dataset.json"), "dataset": [{"images": []}]}, raw / "dataset.json")
    save(raw / "imagesTs" / "t_0000.nii.gz", np.zeros(SHAPE, np.float32))
    problems = check_raw_dataset(raw, workers=1)
    assert len(problems) == 2
    assert "got list" in problems[0] and "t_0000.nii.gz" in problems[1]


def test_test_scans_named_against_the_rule_do_not_hide_other_problems(raw: Path) -> None:
    for channel in range(2):
        (raw / "imagesTs" / f"t_{channel:04d}.nii.gz").rename(raw / "imagesTs" / f"t{channel}.nii.gz")
    save(raw / "imagesTr" / "a_0000.nii.gz", np.zeros(SHAPE, np.float32))
    problems = check_raw_dataset(raw, workers=1)
    names = [Path(problem.partition(":")[0]).name for problem in problems]
    assert names == ["t0.nii.gz", "t1.nii.gz", "a_0000.nii.gz"]


def test_missing_training_scans_do_not_hide_problems_of_test_scans(raw: Path) -> None:
    shutil.rmtree(raw / "imagesTr")
    save(raw / "imagesTs" / "t_0000.nii.gz", np.zeros(SHAPE, np.float32))
    problems = check_raw_dataset(raw, workers=1)
    assert ["imagesTr: no image" in problems[0], "t_0000.nii.gz" in problems[1], len(problems)] == [True, True, 2]


def test_wrong_count_and_bad_scan_are_listed_together(raw: Path) -> None:
    save_json({**load_json(raw / "dataset.json"), "numTraining": 7}, raw / "dataset.json")
    (raw / "imagesTr" / "a_0000.nii.gz").write_bytes(gzip.compress(b"not a scan"))
    problems = check_raw_dataset(raw, workers=1)
    assert len(problems) == 2
    assert "numTraining is 7 but 3 training cases exist" in problems[0]


def test_several_workers_find_the_same_problems(raw: Path) -> None:
    save(raw / "imagesTr" / "a_0000.nii.gz", np.zeros(SHAPE, np.float32))
    save(raw / "labelsTr" / "c.nii.gz", labels(0, 5))
    assert check_raw_dataset(raw, workers=2) == check_raw_dataset(raw, workers=1)


def test_missing_folder_and_damaged_json_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_dataset_json(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"no dataset\.json in it"):
        load_dataset_json(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_dataset_json(tmp_path)


def test_writing_refuses_what_reading_would_refuse(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="consecutive"):
        write_dataset_json(tmp_path, {"0": "CT"}, {"background": 0, "x": 3}, 1)
    assert not (tmp_path / "dataset.json").exists()


def test_real_scans_pass_the_check(shared_data: Path) -> None:
    assert check_raw_dataset(shared_data / "Dataset103_CardiacCine", workers=1) == []
    assert check_raw_dataset(shared_data / "Dataset104_BrainTumour2ch", workers=1) == []
