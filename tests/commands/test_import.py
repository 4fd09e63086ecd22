"""`nnssl_import`: what it refuses, what it leaves behind, and that planning works on what it wrote."""

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from nnssl.commands import import_scans, plan_and_preprocess
from nnssl.data.intake import open_dataset
from nnssl.paths import load_json
from tests.data.raw_scans import make_image, use_folders
from tests.data.scan_files import scan, write, write_dicom


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_folders(tmp_path, monkeypatch)
    write(tmp_path / "source" / "a.nii.gz", scan(1))
    return tmp_path / "source"


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a refused import."""
    assert import_scans.main(["-n", "Toy", "-np", "1", *words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("nnssl_import: error: ")
    return error


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-d", "0"], "-d 0: the number of a data set must lie in 1 to 999"),
        (["-d", "1000"], "must lie in 1 to 999"),
        (["-d", "301", "-n", "Jane Doe"], "-n 'Jane Doe': give letters and digits"),
        (["-d", "301", "--min_slices", "0"], "--min_slices 0"),
        (["-d", "301", "-np", "0"], "-np 0"),
    ],
)
def test_bad_flags_end_in_one_line(
    source: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    assert expected in refusal(capsys, str(source), *words)


def test_unusable_folders_end_in_one_line(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source.parent / "empty").mkdir()
    (source.parent / "notes.txt").write_text("x")
    (source.parent / "list.json").write_text("{")
    (source.parent / "other.json").write_text("{}")
    assert "no such folder" in refusal(capsys, str(source / "nowhere"), "-d", "301")
    assert "no volume could be taken" in refusal(capsys, str(source.parent / "empty"), "-d", "301")
    assert "a file; give a folder of scans" in refusal(capsys, str(source.parent / "notes.txt"), "-d", "301")
    assert "not valid JSON" in refusal(capsys, str(source.parent / "list.json"), "-d", "301")
    assert "no 'datasets' in it" in refusal(capsys, str(source.parent / "other.json"), "-d", "301")


@pytest.mark.parametrize("folder", ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"])
def test_a_number_belongs_to_one_data_set(source: Path, capsys: pytest.CaptureFixture[str], folder: str) -> None:
    write(source.parent / folder / "Dataset301_Other" / "x.nii.gz", scan(1))
    assert "-d 301 is taken" in refusal(capsys, str(source), "-d", "301")


def test_an_import_leaves_a_whole_data_set_and_nothing_else(source: Path) -> None:
    write(source / "b.nii.gz", scan(2, (12, 10, 8, 2)))
    raw = source.parent / "nnUNet_raw"
    (raw / ".Dataset301_Toy.partial").mkdir()
    (raw / ".Dataset301_Toy.partial" / "left by a killed run").touch()
    assert import_scans.main([str(source), "-d", "301", "-n", "Toy", "-np", "1"]) == 0
    assert sorted(path.name for path in (raw / "Dataset301_Toy").rglob("*") if path.is_file()) == [
        "Toy_0001_0000.nii.gz", "Toy_0002_1_0000.nii.gz", "Toy_0002_2_0000.nii.gz",
        "dataset.json", "nnssl_import.txt", "nnssl_sources.json",
    ]  # fmt: skip
    assert [path.name for path in raw.iterdir()] == ["Dataset301_Toy"]


def test_the_list_of_sources_says_where_every_case_came_from(source: Path) -> None:
    write_dicom(source / "study", scan(2))
    assert import_scans.main([str(source), "-d", "301", "-n", "Toy", "-np", "1"]) == 0
    listed = load_json(source.parent / "nnUNet_raw/Dataset301_Toy/nnssl_sources.json")
    assert listed["kind"] == "files and DICOM"
    assert listed["cases"]["Toy_0001"]["files"] == [str(source / "a.nii.gz")]
    assert listed["cases"]["Toy_0002"]["files"][0] == str(source / "study" / "1.2.3.4_001.dcm")


@pytest.mark.slow
def test_processes_import_the_same(source: Path, tmp_path: Path) -> None:
    write(source / "b.nii.gz", scan(2, (12, 10, 8, 2)))
    write_dicom(source / "study", scan(3))
    (source / "c.nii.gz").write_bytes(b"damaged")
    texts = []
    for number, processes in ((301, "1"), (302, "2")):
        assert import_scans.main([str(source), "-d", str(number), "-n", "Toy", "-np", processes]) == 1
        texts.append((tmp_path / f"nnUNet_raw/Dataset{number}_Toy/nnssl_import.txt").read_text())
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_planning_and_preprocessing_work_on_every_kind(source: Path, tmp_path: Path) -> None:
    shape = (24, 26, 22)
    for seed, name in enumerate(("b.nii", "c.nrrd", "d.mha", "e.mhd")):
        write(source / name, make_image(_smooth(seed, shape)))
    write_dicom(source / "study", scan(9, shape))
    assert import_scans.main([str(source), "-d", "301", "-n", "Toy", "-np", "1"]) == 0
    assert plan_and_preprocess.main(["-d", "301", "-e", "vit_tiny_8", "-np", "1"]) == 0
    folder = tmp_path / "nnUNet_preprocessed/Dataset301_Toy/nnsslPlans_vit_tiny_8_pretrain"
    stored = {path.stem for path in folder.glob("*.b2nd") if not path.stem.endswith("_seg")}
    assert stored == {case.identifier for case in open_dataset(301).cases}


def _smooth(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    values = gaussian_filter(np.random.default_rng(seed).normal(size=shape[::-1]), 1.5)
    return ((values - values.min()) * 1000 + 5).astype(np.float32)
