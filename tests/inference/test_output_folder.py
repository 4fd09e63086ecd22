"""A label map is in the output folder whole or not at all, and one case never stops or replaces another."""

import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnssl.dataset_conversion.raw_dataset import Case
from nnssl.inference.output_folder import PublishingPlans, begin, check_output, finish, pending, publish, unpredicted
from tests.toy_dataset import toy_plans

ENDING = ".nii.gz"
CASES = [Case("a", (Path("a_0000.nii.gz"),), None), Case("b", (Path("b_0000.nii.gz"),), None)]
GEOMETRY = {
    "sitk_stuff": {
        "spacing": (1.0, 1.5, 2.0),
        "origin": (3.0, -4.0, 5.0),
        "direction": (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0),
        "original_orientation": "LPS",
    }
}


def label_map(side: int = 40) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 3, (side, side, side)).astype(np.uint8)


def write(path: Path) -> None:
    PublishingPlans(toy_plans(), ENDING).image_reader_writer_class().write_seg(label_map(), str(path), GEOMETRY)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd"])
def test_a_full_disk_leaves_no_label_map_in_the_output_folder(tmp_path: Path, ending: str) -> None:
    partial = begin(CASES, tmp_path, ending)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))  # the disk is "full" after 2 kB
    try:
        with pytest.raises((OSError, RuntimeError)):
            PublishingPlans(toy_plans(), ending).image_reader_writer_class().write_seg(
                label_map(), str(partial / f"a{ending}"), GEOMETRY
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not (tmp_path / f"a{ending}").exists()
    assert unpredicted(CASES, tmp_path, ending, False) == CASES


def test_a_whole_label_map_is_moved_out_as_it_was_given(tmp_path: Path) -> None:
    partial = begin(CASES, tmp_path, ENDING)
    (partial / "a.npz").write_bytes(b"probabilities")
    write(partial / "a.nii.gz")
    found = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(tmp_path / "a.nii.gz")), "RAS")
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(found), label_map())
    assert (tmp_path / "a.npz").read_bytes() == b"probabilities"
    assert pending(CASES, tmp_path) == unpredicted(CASES, tmp_path, ENDING, True) == CASES[1:]


def test_an_interrupted_second_prediction_counts_only_new_maps_as_done(tmp_path: Path) -> None:
    for case in "ab":
        (tmp_path / f"{case}.nii.gz").write_bytes(b"old")
    partial = begin(CASES, tmp_path, ENDING)
    write(partial / "a.nii.gz")
    (partial / "b.nii.gz").write_bytes(b"half")  # killed here
    assert (tmp_path / "b.nii.gz").read_bytes() == b"old"
    assert unpredicted(CASES, tmp_path, ENDING, False) == CASES[1:]


def test_a_failed_case_keeps_no_earlier_map_and_nothing_partial_stays(tmp_path: Path) -> None:
    (tmp_path / "b.nii.gz").write_bytes(b"old")
    partial = begin(CASES, tmp_path, ENDING)
    write(partial / "a.nii.gz")
    (partial / "b.npz").write_bytes(b"half")
    finish(CASES, tmp_path, ENDING)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


def test_probabilities_of_an_earlier_map_do_not_stay_beside_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"old")
    partial = begin(CASES, tmp_path, ENDING)
    (partial / "a.nii.gz").write_bytes(b"new")
    publish(partial / "a.nii.gz", ENDING)
    assert not (tmp_path / "a.npz").exists() and (tmp_path / "a.nii.gz").read_bytes() == b"new"


def test_reference_labels_are_no_output_folder(tmp_path: Path) -> None:
    shutil.copy(__file__, tmp_path / "b.nii.gz")
    with pytest.raises(ValueError, match="label maps that nnssl_predict did not write"):
        check_output(tmp_path, CASES, ENDING)
    check_output(tmp_path, CASES[:1], ENDING)
    (tmp_path / "plans.json").write_text("{}")
    check_output(tmp_path, CASES, ENDING)
