"""What a raw data set offers, and when its key changes."""

from pathlib import Path

import pytest

from nnssl.data.intake import files_key, open_dataset
from tests.data.raw_scans import use_folders, write_dataset


def test_a_folder_without_labels_is_an_unlabelled_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = use_folders(tmp_path, monkeypatch)
    write_dataset(raw, "Dataset901_Bare", cases=2, labelled=False)
    dataset = open_dataset(901)
    assert (dataset.name, dataset.labelled, dataset.channels, len(dataset.cases)) == ("Dataset901_Bare", False, 1, 2)


def test_the_key_changes_when_a_file_changes_and_not_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob", cases=2)
    before = files_key(open_dataset(901))
    assert files_key(open_dataset("Dataset901_Blob")) == before
    with (folder / "labelsTr" / "case_1.nii.gz").open("ab") as stream:
        stream.write(b"x")
    assert files_key(open_dataset(901)) != before


def test_a_data_set_that_is_only_preprocessed_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_folders(tmp_path, monkeypatch)
    (tmp_path / "nnUNet_preprocessed" / "Dataset902_Gone").mkdir()
    with pytest.raises(FileNotFoundError, match="Dataset902_Gone: no such folder in nnUNet_raw"):
        open_dataset(902)
