"""The demo command refuses what it cannot run, before it writes anything."""

from pathlib import Path

import pytest

from nnssl.commands.demo import main
from nnssl.dataset_conversion.raw_dataset import write_dataset_json


def test_a_raw_folder_needs_the_name_of_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset_json(tmp_path / "hearts", {"0": "MRI"}, {"background": 0, "heart": 1}, 1)
    assert main(["--raw", str(tmp_path / "hearts"), "-o", str(tmp_path / "out"), "-device", "cpu"]) == 2
    assert "expected DatasetNNN_Name" in capsys.readouterr().err


def test_an_output_folder_of_other_data_is_not_mixed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("here", "there"):
        write_dataset_json(tmp_path / place / "Dataset007_Heart", {"0": "MRI"}, {"background": 0, "heart": 1}, 1)
    link = tmp_path / "out" / "nnUNet_raw" / "Dataset007_Heart"
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "here" / "Dataset007_Heart")
    assert main(["--raw", str(tmp_path / "there" / "Dataset007_Heart"), "-o", str(tmp_path / "out")]) == 2
    assert "holds other data" in capsys.readouterr().err


def test_an_unlabelled_set_alone_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-unlabelled", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert "-unlabelled needs --raw" in capsys.readouterr().err
