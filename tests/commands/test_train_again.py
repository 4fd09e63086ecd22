"""A run of nnssl_train is taken up again only with what it began with: settings, labels and stored volumes."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from nnssl.commands.train import build_parser, main, request
from nnssl.data.stamp import write_stamp
from nnssl.trainers.finetune_run import EncoderFile, RunOptions, check_same_run, run_plans
from nnssl.trainers.finetune_start import resume, start
from nnssl.trainers.frozen_encoder import FrozenEncoderTrainer
from tests.commands.train_toy import QUICK, refused, train, write_encoder
from tests.toy_dataset import ENCODER, NAME, PLANS, set_environment, toy_plans, write_preprocessed, write_raw


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    write_preprocessed(folder, write_raw(folder))
    return folder


@pytest.fixture
def results(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    set_environment(toy, monkeypatch)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    return tmp_path / "results" / NAME


def test_existing_run_needs_c_and_continues_with_it(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ["--random_frozen", "-run", "a", *QUICK]
    assert train(*start) == 0
    assert train(*start) == 2
    assert "add --c" in capsys.readouterr().err
    assert train("-run", "a", "--c", "-device", "cpu", "--no_validation") == 0
    assert "epoch 1 of 1" in capsys.readouterr().out


def test_continuing_refuses_other_settings_and_takes_equal_ones(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["-device", "cpu", "--no_validation"]
    assert train("--random_frozen", "-run", "a", "-num_labelled", 2, "-seed", 4, *QUICK, "lr=3e-4") == 0
    file = write_encoder(tmp_path / "encoder.safetensors")
    for words, reason in [
        (["--set", "lr=1e-3"], "not --set lr=1e-3"),
        (["--set", "batch_size=1"], "not --set batch_size=1"),
        (["-num_labelled", 3], "num_labelled 2, not 3"),
        (["-seed", 0], "seed 4, not 0"),
        (["--from_scratch"], "mode random_frozen, not scratch"),
        (["-pretrained_weights", file], "mode random_frozen, not pretrained"),
    ]:
        capsys.readouterr()
        assert train("-run", "a", "--c", *short, *words) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and "--c keeps the run's settings" in lines[0] and reason in lines[0], lines
        assert "use a new -run" in lines[0]
    same = ["--random_frozen", "-num_labelled", 2, "-seed", 4, "--set", "lr=0.0003", "batch_size=2"]
    assert train("-run", "a", "--c", *short, *same) == 0


def test_a_continued_training_does_not_repeat_its_first_batches(results: Path) -> None:
    words = [NAME, "3d_fullres", "0", "-p", PLANS, "--random_frozen", "-run", "a", "-device", "cpu"]
    asked = request(build_parser().parse_args(words))
    started = start(asked).trainer
    batches = [_first_batch(started)]
    started.save_checkpoint(str(Path(started.output_folder) / "checkpoint_latest.pth"))
    for _ in range(2):
        batches.append(_first_batch(resume(asked, {}).trainer))
    assert not torch.equal(batches[0], batches[1])
    assert torch.equal(batches[1], batches[2])


def _first_batch(trainer: FrozenEncoderTrainer) -> torch.Tensor:
    trainer.on_train_start()
    return next(trainer.dataloader_train)["data"]


def test_changed_labels_end_a_continuation_in_one_line(
    toy: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--random_frozen", "-run", "a", *QUICK) == 0
    file = toy / "nnUNet_preprocessed" / NAME / "dataset.json"
    before = file.read_text()
    changed = json.loads(before)
    changed["labels"] = {**changed["labels"], "Third": 3}
    file.write_text(json.dumps(changed))
    capsys.readouterr()
    try:
        assert train("-run", "a", "--c", "-device", "cpu", "--no_validation") == 2
    finally:
        file.write_text(before)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "does not fit the plans and labels" in lines[0] and "size mismatch" in lines[0]


def test_folds_of_a_run_share_their_settings(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--random_frozen", *QUICK) == 0
    assert main([NAME, "3d_fullres", "1", "-p", PLANS, "--random_frozen", *QUICK, "--set", "lr=0.5"]) == 2
    assert "other settings (finetune, settings)" in capsys.readouterr().err


@pytest.fixture
def copied(toy: Path, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The preprocessed data set, free to be changed."""
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "copy"))
    return Path(shutil.copytree(toy / "nnUNet_preprocessed" / NAME, tmp_path / "copy" / NAME))


def test_volumes_of_another_plan_are_refused_with_the_difference(
    copied: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = toy_plans()
    plans["configurations"]["3d_fullres"]["spacing"] = [1.0, 1.5, 4.0]  # planned again with --no_pp or -c pretrain
    (copied / f"{PLANS}.json").write_text(json.dumps(plans))
    line = refused(capsys, results, "--random_frozen")
    assert "spacing was [1.0, 1.5, 2.0] and is now [1.0, 1.5, 4.0]" in line
    assert "nnssl_plan_and_preprocess -d 777 -e vit_tiny_8 -c 3d_fullres again" in line


def test_volumes_of_an_unfinished_preprocessing_are_refused(
    copied: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / f"{PLANS}_3d_fullres.stamp.json").unlink()
    assert "preprocessing did not finish" in refused(capsys, results, "--random_frozen")


def test_a_continued_run_needs_the_volumes_it_began_with(
    copied: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--random_frozen", "-run", "a", *QUICK) == 0
    plans = toy_plans()
    plans["configurations"]["3d_fullres"]["spacing"] = [1.0, 1.5, 4.0]
    write_stamp(copied, plans, "3d_fullres")  # planned and preprocessed again
    assert train("-run", "a", "--c", "-device", "cpu", "--no_validation") == 2
    assert "spacing was [1.0, 1.5, 4.0] and is now [1.0, 1.5, 2.0]" in capsys.readouterr().err


def test_folds_may_differ_in_what_was_allowed_and_loaded(tmp_path: Path) -> None:
    plans = []
    for allowed, loaded in (((), "175 of 175"), (("partial",), "174 of 175")):
        file = EncoderFile(f"{loaded}.safetensors", loaded, ENCODER, (16, 16, 16), None, loaded)
        plans.append(run_plans(toy_plans(), "3d_fullres", RunOptions(allowed=allowed), file=file))
    assert plans[1]["nnssl"]["run"]["allowed"] == ["partial"]
    (tmp_path / "fold_0").mkdir()
    (tmp_path / "fold_0" / "checkpoint_final.pth").touch()
    (tmp_path / "plans.json").write_text(json.dumps(plans[0]))
    check_same_run(tmp_path, plans[1])
