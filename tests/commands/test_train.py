"""nnssl_train refuses what does not fit before it writes anything, and records the encoder by name and content only."""

import json
from pathlib import Path

import pytest
import torch

from nnssl.commands.train import main
from nnssl.config import to_dict
from nnssl.encoders.base import IntensityRange
from nnssl.trainers.finetune_encoder import load_for_plans
from nnssl.trainers.finetune_run import EncoderFile, RunOptions, check_encoder_file, check_overlap, run_plans
from nnssl.trainers.splits import splits_for
from nnssl.weights.encoder_file import sha256
from nnssl.weights.header import EncoderHeader, record_cases
from tests.commands.train_toy import QUICK, WINDOW, refused, tensors_of, train, write_encoder
from tests.toy_dataset import (
    ENCODER,
    NAME,
    NATIVE_CROP,
    PLANS,
    set_environment,
    toy_plans,
    write_preprocessed,
    write_raw,
)


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


def test_pretrained_run_records_name_and_content_and_no_path(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret_place"
    secret.mkdir()
    file = write_encoder(secret / "encoder.safetensors", native_crop=(24, 16, 16))
    assert train("-pretrained_weights", file, "-run", "pre", "-num_labelled", 2, "-seed", 4, *QUICK) == 0
    assert "(100 %)" in capsys.readouterr().out
    folder = results / f"FrozenEncoderTrainer__{PLANS}_pre__3d_fullres"
    plans = json.loads((folder / "plans.json").read_text())
    run = plans["nnssl"]["run"]
    assert (run["mode"], run["weights_file"], run["num_labelled"], run["seed"]) == ("pretrained", file.name, 2, 4)
    assert run["weights_sha256"] == sha256(file)
    assert (run["loaded"], run["allowed"]) == ("175 of 175", [])
    assert plans["plans_name"] == f"{PLANS}_pre"
    assert plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["native_crop"] == [24, 16, 16]
    written = [path for path in results.rglob("*") if path.is_file()]
    assert not [path for path in written if b"secret_place" in path.read_bytes()]
    assert " encoder unchanged: sha256" in next((folder / "fold_0").glob("training_log*")).read_text()
    weights = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=True)["network_weights"]
    expected = {f"neck.encoder.{name}": value for name, value in tensors_of(file).items()}
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


@pytest.mark.parametrize(("mode", "frozen"), [("scratch", False), ("random_frozen", True), ("pretrained", True)])
def test_only_scratch_trains_the_encoder(mode: str, frozen: bool) -> None:
    changed = run_plans(toy_plans(), "3d_fullres", RunOptions(mode), file=None)
    assert changed["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["frozen"] is frozen


def test_an_encoder_of_another_name_is_refused(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_encoder(tmp_path / "other.safetensors", encoder="vit_tiny_16")
    line = refused(capsys, results, "-pretrained_weights", file)
    assert "holds vit_tiny_16, but the plans are for vit_tiny_8; plan again with" in line


def test_another_intensity_is_refused_unless_meant(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_encoder(tmp_path / "mr.safetensors", intensity=IntensityRange())
    assert "percentile:0.05,99.95" in refused(capsys, results, "-pretrained_weights", file)
    found, encoder, summary = load_for_plans(file, toy_plans(), "3d_fullres", allow_partial=False, allow_intensity=True)
    assert (found.name, found.native_crop, summary[:4]) == ("mr.safetensors", tuple(NATIVE_CROP), "175 ")
    assert torch.equal(encoder.state_dict()["pos_embed"], tensors_of(file)["pos_embed"])


def test_the_difference_that_the_plans_record_is_accepted_and_no_other() -> None:
    plans = toy_plans()
    recorded, other = IntensityRange("window", -500, 500, (0, 1)), IntensityRange("window", -500, 400, (0, 1))
    plans["nnssl"] |= {"intensity": to_dict(IntensityRange("window", -175, 250, (0, 1)))}
    plans["nnssl"] |= {"encoder_intensity": to_dict(recorded)}
    for seen in (recorded, IntensityRange("window", -175, 250, (0, 1))):
        check_encoder_file(plans, "3d_fullres", file_that_saw(seen))
    with pytest.raises(ValueError, match="add --allow_intensity"):
        check_encoder_file(plans, "3d_fullres", file_that_saw(other))
    plans["nnssl"]["encoder_intensity"] = None
    with pytest.raises(ValueError, match="add --allow_intensity"):
        check_encoder_file(plans, "3d_fullres", file_that_saw(recorded))


def file_that_saw(intensity: IntensityRange) -> EncoderFile:
    return EncoderFile("smit", "", ENCODER, (16, 16, 16), EncoderHeader(ENCODER, (16, 16, 16), intensity))


def test_validation_cases_seen_in_pretraining_are_refused_unless_allowed(
    results: Path, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [f"toy_{number:03d}" for number in range(5)]
    fold = splits_for(toy / "nnUNet_preprocessed" / NAME, cases)[0]
    seen = write_encoder(tmp_path / "seen.safetensors", data=record_cases([(NAME, case) for case in cases]))
    line = refused(capsys, results, "-pretrained_weights", seen)
    assert "1 of 1 validation cases" in line and "pretrain with -f 0" in line
    clean = EncoderHeader(ENCODER, (16, 16, 16), WINDOW, data=record_cases([(NAME, case) for case in fold["train"]]))
    file = EncoderFile("clean.safetensors", "", ENCODER, (16, 16, 16), clean)
    assert "none of the 1 validation cases" in check_overlap(file, NAME, fold["val"], 0)


def test_a_file_that_lacks_tensors_is_refused_unless_allowed(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    tensors = tensors_of(write_encoder(tmp_path / "whole.safetensors"))
    del tensors["norm.weight"]
    save_file(tensors, tmp_path / "partial.safetensors")
    line = refused(capsys, results, "-pretrained_weights", tmp_path / "partial.safetensors")
    assert "174 of 175" in line and "--allow_partial" in line
    _, _, summary = load_for_plans(
        tmp_path / "partial.safetensors", toy_plans(), "3d_fullres", allow_partial=True, allow_intensity=False
    )
    assert "1 missing (norm.weight)" in summary


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "--random_frozen"),
        (["--random_frozen", "-run", "a__b"], "double underscore"),
        (["--random_frozen", "--set", "colour=red"], "known keys: lr"),
        (["--random_frozen", "--set", "epochs=0"], "must be above 0"),
        (["--random_frozen", "--set", "batch_size=0"], "'batch_size': must be at least 1, got 0"),
        (["--random_frozen", "--set", "adapter_width=0"], "'adapter_width': must be at least 1, got 0"),
        (["--random_frozen", "-num_labelled", "9"], "4 training cases"),
        (["-pretrained_weights", "nowhere.safetensors"], "no such file"),
        (["--c"], "no checkpoint there"),
    ],
)
def test_bad_words_end_in_one_line(
    results: Path, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    assert reason in refused(capsys, results, *words)


def test_unknown_plans_list_the_known_ones(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([NAME, "3d_fullres", "0", "-p", "nix", "--random_frozen"]) == 2
    assert f"known plans: {PLANS}" in capsys.readouterr().err


def test_a_stamp_is_not_listed_as_a_plan(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([NAME, "3d_fullres", "0", "-p", "nix", "--random_frozen"]) == 2
    assert f"known plans: {PLANS}; run" in capsys.readouterr().err


def test_set_reaches_recipe_and_network() -> None:
    plans = toy_plans()
    options = RunOptions("random_frozen", settings=("lr=1e-3", "batch_size=5", "precision=bf16"))
    changed = run_plans(plans, "3d_fullres", options, file=None)
    assert changed["nnssl"]["finetune"]["lr"] == 1e-3
    assert changed["configurations"]["3d_fullres"]["batch_size"] == 5
    assert changed["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["precision"] == "bf16"
    assert plans["configurations"]["3d_fullres"]["batch_size"] == 2


@pytest.mark.slow
def test_validation_writes_scores_of_the_fold(results: Path) -> None:
    assert (
        train("--random_frozen", "-device", "cpu", "--disable_tta", "--set", "epochs=1", "iterations_per_epoch=1") == 0
    )
    summary = json.loads(next(results.rglob("summary.json")).read_text())
    assert set(summary["mean"]) == {"1", "2"}
