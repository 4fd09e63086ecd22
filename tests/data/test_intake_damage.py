"""Damaged scans: each kind ends in a line of the table with its reason and exit code 1, and the sound scan is taken."""

from pathlib import Path

import pytest

from nnssl.commands import import_scans
from nnssl.data.intake import open_dataset
from tests.data.damage import DAMAGES
from tests.data.raw_scans import use_folders
from tests.data.scan_files import scan, write


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_folders(tmp_path, monkeypatch)
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def run(source: Path, *words: str) -> int:
    return import_scans.main([str(source), "-d", "301", "-n", "Toy", "-np", "1", *words])


def lines_of(text: str, word: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip().startswith(word)]


def test_there_are_more_than_thirty_kinds() -> None:
    assert len(DAMAGES) >= 30


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_scan_is_listed_with_its_reason(source: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    damage, reason = DAMAGES[kind]
    damage(source)
    write(source / "good.nii.gz", scan(1))
    assert run(source) == 1
    captured = capsys.readouterr()
    assert any(reason in line and "bad" in line for line in lines_of(captured.out, "damaged")), captured.out
    assert "good.nii.gz" in captured.out and "Traceback" not in captured.err
    cases = open_dataset(301).cases
    assert cases[-1].images[0].readlink() == source / "good.nii.gz"
    assert len(cases) == (3 if kind == "one constant time of a 4D file" else 1)


def test_a_folder_of_nothing_but_damage_is_refused(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    DAMAGES["half a .nii.gz"][0](source)
    assert run(source) == 2
    captured = capsys.readouterr()
    assert len(lines_of(captured.out, "damaged")) == 1
    assert "no volume could be taken" in captured.err
    assert list((source.parent / "nnUNet_raw").iterdir()) == []


def test_all_kinds_at_once_are_listed_one_by_one(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, (damage, _) in enumerate(DAMAGES.values()):
        (source / f"kind_{number}").mkdir()
        damage(source / f"kind_{number}")
    write(source / "good.nii.gz", scan(1))
    assert run(source) == 1
    listed = (source.parent / "nnUNet_raw/Dataset301_Toy/nnssl_import.txt").read_text()
    assert [number for number in range(len(DAMAGES)) if f"kind_{number}/bad" not in listed] == []
    assert "nnssl_import.txt" in capsys.readouterr().out
