"""`nnssl_convert` on toy Task folders of the Decathlon: round trip, refusals, and the check of a raw folder."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nnunetv2.experiment_planning.verify_dataset_integrity import check_cases
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIOWithReorient

from nnssl.commands.convert import main
from nnssl.dataset_conversion.raw_dataset import check_raw_dataset, list_cases, load_dataset_json

AFFINE = np.array([[1.0, 0, 0, -3], [0, 1.5, 0, 5], [0, 0, 2, 7], [0, 0, 0, 1]])
SHAPE = (12, 11, 10)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def task(folder: Path, modalities: tuple[str, ...]) -> Path:
    """A Task folder with three labelled and two test cases, 4D where there are several modalities."""
    shape = SHAPE if len(modalities) == 1 else (*SHAPE, len(modalities))
    rng = np.random.default_rng(0)
    for i in range(5):
        split = "Tr" if i < 3 else "Ts"
        save(folder / f"images{split}" / f"brain_{i:03d}.nii.gz", rng.integers(0, 500, shape).astype(np.int16))
        if split == "Tr":
            save(folder / f"labels{split}" / f"brain_{i:03d}.nii.gz", rng.integers(0, 3, SHAPE).astype(np.uint8))
        (folder / f"images{split}" / f"._brain_{i:03d}.nii.gz").write_bytes(b"macOS")
    description = {
        "name": "TOY",
        "licence": "CC-BY-SA 4.0",
        "tensorImageSize": "4D",
        "modality": {str(i): name for i, name in enumerate(modalities)},
        "labels": {"0": "Background", "1": "edema", "2": "enhancing tumour"},
        "numTraining": 3,
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "nnUNet_raw"
    folder.mkdir()
    monkeypatch.setenv("nnUNet_raw", str(folder))
    return folder


@pytest.mark.parametrize("modalities", [("MRI",), ("FLAIR", "T1w", "T2w")])
def test_task_folder_becomes_a_raw_data_set_with_the_same_voxels(
    tmp_path: Path, raw: Path, modalities: tuple[str, ...]
) -> None:
    source = task(tmp_path / "Task41_Toy", modalities)
    assert main(["decathlon", "-i", str(source), "-np", "1"]) == 0
    target = raw / "Dataset041_Toy"
    assert check_raw_dataset(target, workers=1) == []
    for split, name in (("Tr", "brain_000"), ("Ts", "brain_004")):
        original = voxels(source / f"images{split}" / f"{name}.nii.gz").reshape(*SHAPE, len(modalities))
        for channel in range(len(modalities)):
            path = target / f"images{split}" / f"{name}_{channel:04d}.nii.gz"
            assert np.array_equal(voxels(path), original[..., channel])
            assert np.allclose(nibabel.load(path).affine, AFFINE)
    assert np.array_equal(
        voxels(target / "labelsTr" / "brain_001.nii.gz"), voxels(source / "labelsTr" / "brain_001.nii.gz")
    )
    written = json.loads((target / "dataset.json").read_text())
    assert list(written["channel_names"].values()) == list(modalities)
    assert written["labels"] == {"background": 0, "edema": 1, "enhancing tumour": 2}
    assert written["licence"] == "CC-BY-SA 4.0"


def test_converted_folder_passes_nnunets_own_check(tmp_path: Path, raw: Path) -> None:
    assert main(["decathlon", "-i", str(task(tmp_path / "Task41_Toy", ("FLAIR", "T1w"))), "-d", "7", "-np", "1"]) == 0
    folder = raw / "Dataset007_Toy"
    for case in list_cases(folder, load_dataset_json(folder)):
        images = [str(path) for path in case.images]
        assert check_cases(images, str(case.label), 2, SimpleITKIOWithReorient)


def test_existing_data_set_is_never_overwritten(tmp_path: Path, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = task(tmp_path / "Task41_Toy", ("MRI",))
    (raw / "Dataset041_Other").mkdir()
    (raw / "Dataset041_Other" / "kept.txt").write_text("kept")
    assert main(["decathlon", "-i", str(source), "-np", "1"]) == 2
    assert "choose another number with -d" in capsys.readouterr().err
    assert sorted(path.name for path in raw.iterdir()) == ["Dataset041_Other"]


def test_damaged_case_is_left_out_and_listed(tmp_path: Path, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = task(tmp_path / "Task41_Toy", ("FLAIR", "T1w"))
    image = source / "imagesTr" / "brain_001.nii.gz"
    image.write_bytes(image.read_bytes()[:500])
    (source / "labelsTr" / "brain_002.nii.gz").unlink()
    save(source / "imagesTs" / "brain_003.nii.gz", np.zeros((*SHAPE, 3), np.int16))
    assert main(["decathlon", "-i", str(source), "-np", "1"]) == 1
    output = capsys.readouterr().out
    assert "3 case(s) left out" in output
    assert "has 3 channel(s), dataset.json declares 2 modalities" in output
    names = sorted(path.name for path in (raw / "Dataset041_Toy").rglob("*.nii.gz"))
    assert names == [
        "brain_000.nii.gz", "brain_000_0000.nii.gz", "brain_000_0001.nii.gz",
        "brain_004_0000.nii.gz", "brain_004_0001.nii.gz",
    ]  # fmt: skip
    assert json.loads((raw / "Dataset041_Toy" / "dataset.json").read_text())["numTraining"] == 1
    assert check_raw_dataset(raw / "Dataset041_Toy", workers=1) == []


def test_failed_conversion_leaves_nothing_behind(tmp_path: Path, raw: Path) -> None:
    source = task(tmp_path / "Task41_Toy", ("MRI",))
    for label in (source / "labelsTr").iterdir():
        label.unlink()
    assert main(["decathlon", "-i", str(source), "-np", "1"]) == 2
    assert list(raw.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["unknown", "-i", "."], "known are decathlon"),
        (["decathlon"], "give the folder of the downloaded data with -i"),
        (["decathlon", "-i", "absent"], "no such folder"),
        (["decathlon", "-i", "."], "TaskNN_Name"),
        (["--check", "999"], "give a path, a number or a name"),
        ([], "nothing to do"),
    ],
)
def test_bad_input_ends_in_one_line_and_exit_code_2(
    raw: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_list_names_each_converter_with_its_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert "decathlon: Medical Segmentation Decathlon, any Task folder" in capsys.readouterr().out


def test_check_lists_every_problem_and_its_exit_code(
    tmp_path: Path, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["decathlon", "-i", str(task(tmp_path / "Task41_Toy", ("MRI",))), "-np", "1"]) == 0
    assert main(["--check", "41", "-np", "1"]) == 0
    assert "no problem in 3 training cases, 3 labelled" in capsys.readouterr().out
    save(raw / "Dataset041_Toy" / "imagesTr" / "brain_000_0000.nii.gz", np.zeros(SHAPE, np.float32))
    save(raw / "Dataset041_Toy" / "labelsTr" / "brain_001.nii.gz", np.full(SHAPE, 9, np.uint8))
    assert main(["--check", str(raw / "Dataset041_Toy"), "-np", "1"]) == 1
    output = capsys.readouterr().out
    assert "2 problem(s)" in output
    assert "constant image" in output
    assert "label value(s) 9" in output
