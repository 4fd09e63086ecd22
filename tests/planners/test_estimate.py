"""Hours, disk and memory: the arithmetic by hand, the disk against what preprocessing really stores."""

from pathlib import Path

import pytest

from nnssl.commands.plan_and_preprocess import main
from nnssl.data.fingerprint import fingerprint
from nnssl.data.intake import open_dataset
from nnssl.data.preprocessing import NnsslPreprocessor
from nnssl.encoders import encoder_spec
from nnssl.paths import load_json
from nnssl.planners.encoder_planner import EncoderPlanner
from nnssl.planners.estimate import (
    Storing,
    disk_row,
    duration,
    finetune_seconds,
    measure_storing,
    pretrain_seconds,
    probed,
    step_seconds,
    storing_row,
)
from nnssl.planners.probe import Measured
from nnssl.recipe import FineTuneRecipe, PretrainRecipe
from tests.data.raw_scans import use_folders, write_dataset

SEEN = Measured(batch=2, passes_seconds=3.0, update_seconds=0.5, prepare_seconds=0.2, peak_bytes=1e9)


def test_passes_grow_with_the_batch_and_the_update_does_not() -> None:
    assert step_seconds(SEEN, 8) == 12.5  # 3 s x 8 / 2 + 0.5 s


def test_a_fold_is_its_training_and_validation_steps() -> None:
    recipe = FineTuneRecipe(epochs=10, iterations_per_epoch=20, val_iterations=6)
    assert finetune_seconds(SEEN, recipe, 4) == pytest.approx(10 * (20 * 6.5 + 6 * 2.0))  # forward: a third of 6 s


def test_loading_runs_beside_a_gpu_and_before_a_cpu() -> None:
    recipe = PretrainRecipe(steps=100, batch_size=8)
    assert pretrain_seconds(SEEN, recipe, workers=4, beside=True) == pytest.approx(1250)  # loading is hidden
    assert pretrain_seconds(SEEN, recipe, workers=4, beside=False) == pytest.approx(100 * (12.5 + 0.2 * 8 / 4))
    assert pretrain_seconds(SEEN, recipe, workers=0, beside=True) == pytest.approx(100 * (12.5 + 0.2 * 8))
    slow = Measured(2, 3.0, 0.5, prepare_seconds=20.0, peak_bytes=0.0)
    assert pretrain_seconds(slow, recipe, workers=4, beside=True) == pytest.approx(100 * 20.0 * 8 / 4)


def test_cases_of_three_sizes_are_measured() -> None:
    assert probed([5.0, 1.0]) == [1, 0]
    assert probed([60.0, 10.0, 40.0, 20.0, 50.0, 30.0]) == [3, 2, 0]  # 2nd, 4th and 6th by size


@pytest.mark.parametrize(
    ("seconds", "words"), [(20, "20 s"), (90, "1.5 min"), (5400, "1.5 h"), (180_000, "50.0 h"), (432_000, "5.0 days")]
)
def test_durations_read_well(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_rows_say_how_they_were_found() -> None:
    storing = Storing("pretrain", cases=40, probed=3, seconds=80.0, stored_bytes=3e9)
    row = storing_row(storing, 4)
    assert (row.value, row.configuration) == ("20 s", "pretrain")
    assert "measured on 3: 2 s per case" in row.why
    assert "10 GB are free" in disk_row([storing], 1e10).why
    assert "ONLY 2 GB ARE FREE" in disk_row([storing], 2e9).why


@pytest.mark.parametrize("configuration", ["3d_fullres", "pretrain"])
def test_the_disk_is_that_of_the_real_preprocessing(
    configuration: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob", cases=7)
    fingerprint(open_dataset(901), processes=1)
    planner = EncoderPlanner(901, spec=encoder_spec("vit_tiny_8"))
    plans = planner.plan_experiment()
    foreseen = measure_storing(planner, configuration)
    NnsslPreprocessor().run(901, configuration, planner.plans_identifier, 1)
    folder = tmp_path / "nnUNet_preprocessed/Dataset901_Blob"
    folder /= plans["configurations"][configuration]["data_identifier"]
    stored = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert (foreseen.cases, foreseen.probed) == (7, 3)
    assert foreseen.stored_bytes == pytest.approx(stored, rel=0.1)


@pytest.mark.slow
def test_the_command_measures_and_stores_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob")
    assert main(["-d", "901", "-e", "swin_tiny", "--estimate", "-device", "cpu", "-np", "1"]) == 0
    told = capsys.readouterr().out
    for words in (
        "what the plan takes on this machine",
        "preprocessing",
        "disk",
        "fine-tuning",
        "pretraining",
        "memory",
    ):
        assert words in told
    folder = tmp_path / "nnUNet_preprocessed/Dataset901_Blob"
    assert not list(folder.rglob("*.b2nd"))
    assert load_json(folder / "nnsslPlans_swin_tiny.json")["nnssl"]["estimate"][0]["what"] == "preprocessing"
    assert "What it will take on this machine" in (folder / "nnsslPlans_swin_tiny.html").read_text()
