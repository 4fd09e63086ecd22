"""nnssl_train refuses what does not fit before it writes anything, and records the encoder by name and content only."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from nnssl.commands.train import _resumed, _seed, _started, build_parser, main
from nnssl.data.stamp import write_stamp
from nnssl.encoders import build_encoder
from nnssl.encoders.base import IntensityRange
from nnssl.trainers.finetune_encoder import load_for_plans
from nnssl.trainers.finetune_run import EncoderFile, RunOptions, check_overlap, check_same_run, run_plans
from nnssl.trainers.splits import splits_for
from nnssl.weights.encoder_file import save_encoder, sha256
from nnssl.weights.header import EncoderHeader, record_cases
from tests.toy_dataset import (
    ENCODER,
    HIGH,
    LOW,
    NAME,
    NATIVE_CROP,
    PLANS,
    set_environment,
    toy_plans,
    write_preprocessed,
    write_raw,
)

WINDOW = IntensityRange("window", LOW, HIGH)
QUICK = ["-device", "cpu", "--no_validation", "--set", "epochs=1", "iterations_per_epoch=1"]


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


def write_encoder(path: Path, **header: Any) -> Path:
    torch.manual_seed(3)
    values = {"encoder": ENCODER, "native_crop": tuple(NATIVE_CROP), "intensity": WINDOW, **header}
    encoder = build_encoder(values["encoder"], native_crop=values["native_crop"])
    save_encoder(path, encoder, EncoderHeader(**values))
    return path


def train(*words: str | Path) -> int:
    return main([NAME, "3d_fullres", "0", "-p", PLANS, *map(str, words)])


def refused(capsys: pytest.CaptureFixture[str], results: Path, *words: str | Path) -> str:
    """The one line of a refused start that wrote nothing."""
    assert train(*words) == 2
    assert not list(results.rglob("*"))
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


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
    weights = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=True)["network_weights"]
    expected = {f"adapter.encoder.{name}": value for name, value in _tensors(file).items()}
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(file)


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
    words = ["-p", PLANS, "--random_frozen", "-run", "a", "-device", "cpu"]
    _seed(0)
    started = _started(build_parser().parse_args([NAME, "3d_fullres", "0", *words]), NAME, 0, torch.device("cpu"))
    batches = [_first_batch(started)]
    started.save_checkpoint(str(Path(started.output_folder) / "checkpoint_latest.pth"))
    again = build_parser().parse_args([NAME, "3d_fullres", "0", *words, "--c"])
    for _ in range(2):
        batches.append(_first_batch(_resumed(again, NAME, 0, torch.device("cpu"))))
    assert not torch.equal(batches[0], batches[1])
    assert torch.equal(batches[1], batches[2])


def _first_batch(trainer: Any) -> torch.Tensor:
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
    found, encoder, summary = load_for_plans(file, toy_plans(), allow_partial=False, allow_intensity=True)
    assert (found.name, found.native_crop, summary[:4]) == ("mr.safetensors", tuple(NATIVE_CROP), "175 ")
    assert torch.equal(encoder.state_dict()["pos_embed"], _tensors(file)["pos_embed"])


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

    tensors = _tensors(write_encoder(tmp_path / "whole.safetensors"))
    del tensors["norm.weight"]
    save_file(tensors, tmp_path / "partial.safetensors")
    line = refused(capsys, results, "-pretrained_weights", tmp_path / "partial.safetensors")
    assert "174 of 175" in line and "--allow_partial" in line
    _, _, summary = load_for_plans(
        tmp_path / "partial.safetensors", toy_plans(), allow_partial=True, allow_intensity=False
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
