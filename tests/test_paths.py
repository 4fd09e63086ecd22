"""Folders of nnU-Net, data set names, and files that are written whole or not at all."""

import errno
from pathlib import Path

import pytest

from nnssl.paths import atomic_write, dataset_id, dataset_name, preprocessed_folder, raw_folder


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    for name in ("Dataset004_Hippocampus", "Dataset005_Prostate", "Dataset105_Hippocampus"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    return tmp_path


def test_a_data_set_is_found_by_number_by_name_and_by_folder(raw: Path) -> None:
    assert dataset_name(4) == dataset_name("004") == dataset_name("Dataset004_Hippocampus") == "Dataset004_Hippocampus"
    assert dataset_name("Prostate") == "Dataset005_Prostate"
    assert dataset_id("Dataset005_Prostate") == 5


def test_an_unknown_or_ambiguous_data_set_says_so(raw: Path) -> None:
    with pytest.raises(FileNotFoundError, match="data set '77': no such folder"):
        dataset_name(77)
    with pytest.raises(ValueError, match="ambiguous: Dataset004_Hippocampus, Dataset105_Hippocampus"):
        dataset_name("Hippocampus")


def test_a_missing_environment_folder_is_named(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="nnUNet_preprocessed is not set"):
        preprocessed_folder()
    monkeypatch.setenv("nnUNet_raw", str(raw / "nowhere"))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        raw_folder()


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "weights.bin"
    target.write_bytes(b"old")
    with pytest.raises(OSError, match="disk is full"), atomic_write(target) as temporary:
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_finished_write_replaces_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "new" / "weights.bin"
    for content in (b"first", b"second"):
        with atomic_write(target) as temporary:
            temporary.write_bytes(content)
        assert target.read_bytes() == content
