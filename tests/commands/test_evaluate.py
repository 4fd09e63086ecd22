"""`nnssl_evaluate` on small folders: files, table, exit codes, and one line for bad input."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnssl.commands.evaluate import main
from nnssl.dataset_conversion.raw_dataset import write_dataset_json

SHAPE = (12, 16, 14)  # (Z, Y, X)


def save(path: Path, array: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 2.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing)
    SimpleITK.WriteImage(image, str(path), True)


def organ(shift: int) -> np.ndarray:
    array = np.zeros(SHAPE, np.uint8)
    array[3:9, 4 + shift : 10 + shift, 4:8] = 1
    array[3:9, 4 + shift : 10 + shift, 8:11] = 2
    return array


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    raw = tmp_path / "Dataset901_Toy"
    for i in range(4):
        save(raw / "imagesTr" / f"c{i}_0000.nii.gz", np.random.default_rng(i).normal(size=SHAPE).astype(np.float32))
        save(raw / "labelsTr" / f"c{i}.nii.gz", organ(0))
        save(tmp_path / "good" / f"c{i}.nii.gz", organ(i % 2))
        save(tmp_path / "bad" / f"c{i}.nii.gz", organ(1 + i % 3))
    write_dataset_json(raw, {"0": "MRI"}, {"background": 0, "head": 1, "tail": 2}, 4)
    return tmp_path


def evaluate(folders: Path, *extra: str, pred: str = "good") -> int:
    labels = folders / "Dataset901_Toy" / "labelsTr"
    return main(["-ref", str(labels), "-pred", str(folders / pred), "-o", str(folders / "out"), "-np", "1", *extra])


def test_two_runs_give_a_table_files_and_pictures(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(folders, "-pred2", str(folders / "bad")) == 0
    output = capsys.readouterr().out
    assert "| foreground mean | 0.917 [" in output
    written = sorted(path.name for path in (folders / "out").iterdir())
    assert written == [
        "evaluation.csv", "evaluation.json", "evaluation.md",
        "overlay_best_c0.png", "overlay_median_c2.png", "overlay_worst_c3.png",
    ]  # fmt: skip
    assert all(str(folders / "out" / name) in output for name in written)
    rows = list(csv.DictReader((folders / "out" / "evaluation.csv").open()))
    assert len(rows) == 2 * 4 * 2
    assert float(rows[2]["dice"]) == pytest.approx(5 / 6, abs=1e-6)  # shifted by 1 of 6 voxels
    assert float(rows[2]["hd95_mm"]) == 1.0


def test_foreground_mean_equals_nnunet(folders: Path) -> None:
    assert evaluate(folders, pred="bad") == 0
    ours = json.loads((folders / "out" / "evaluation.json").read_text())["runs"][0]
    labels = folders / "Dataset901_Toy" / "labelsTr"
    theirs = [
        compute_metrics(str(labels / f"c{i}.nii.gz"), str(folders / "bad" / f"c{i}.nii.gz"), SimpleITKIO(), [1, 2])
        for i in range(4)
    ]
    means = [np.mean([case["metrics"][label]["Dice"] for case in theirs]) for label in (1, 2)]
    assert ours["foreground_mean"]["dice"]["mean"] == pytest.approx(np.mean(means))


def test_absent_prediction_is_listed_and_exits_1_unless_chill(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folders / "good" / "c2.nii.gz").unlink()
    assert evaluate(folders) == 1
    assert "good: no prediction for c2" in capsys.readouterr().out
    assert evaluate(folders, "--chill") == 0


def test_bad_predictions_are_named_and_the_others_are_scored(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(folders / "good" / "c0.nii.gz", organ(0), (1.0, 1.0, 2.5))
    path = folders / "good" / "c1.nii.gz"
    path.write_bytes(path.read_bytes()[:-20])
    save(folders / "good" / "stranger.nii.gz", organ(0))
    assert evaluate(folders) == 1
    output = capsys.readouterr().out
    assert "3 problem(s)" in output
    assert "c0.nii.gz: spacing (1, 1, 2.5) differs from spacing (1, 1, 2)" in output
    assert "c1.nii.gz: truncated" in output
    assert "stranger.nii.gz: no reference for this prediction" in output
    assert "good: 2 cases scored" in output
    assert str(folders) not in (folders / "out" / "evaluation.json").read_text()


def test_without_images_the_table_comes_without_pictures(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folders / "Dataset901_Toy" / "imagesTr").rename(folders / "elsewhere")
    assert evaluate(folders) == 0
    assert "give it with -images FOLDER" in capsys.readouterr().out
    assert evaluate(folders, "-images", str(folders / "elsewhere")) == 0
    assert (folders / "out" / "overlay_best_c0.png").is_file()


def test_unreadable_scan_costs_only_its_picture(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folders / "Dataset901_Toy" / "imagesTr" / "c0_0000.nii.gz").unlink()
    assert evaluate(folders) == 0
    assert "overlay of c0: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["-pred", "absent"], "no such folder"),
        (["-djfile", "absent.json"], "give it with -djfile FILE"),
        (["-np", "0"], "-np 0"),
        (["-pred2", "good"], "given twice"),
    ],
)
def test_bad_input_ends_in_one_line_and_exit_code_2(
    folders: Path, capsys: pytest.CaptureFixture[str], change: list[str], words: str
) -> None:
    values = [str(folders / value) if value in ("absent", "good") else value for value in change]
    assert evaluate(folders, *values) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nnssl_evaluate: error:")]
    assert len(error) == 1
    assert words in error[0]


def test_dataset_json_beside_the_predictions_is_found(folders: Path) -> None:
    (folders / "Dataset901_Toy" / "dataset.json").rename(folders / "good" / "dataset.json")
    assert evaluate(folders) == 0
