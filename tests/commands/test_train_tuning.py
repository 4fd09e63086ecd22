"""nnssl_train trains exactly what its flags say of the encoder, with the networks rebuilt by stock nnU-Net."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from nnssl.commands.train import build_parser, request
from nnssl.encoders import build_encoder
from nnssl.trainers.finetune_encoder import load_for_plans
from nnssl.trainers.finetune_run import RunOptions, run_plans
from nnssl.trainers.finetune_start import start
from tests.commands.train_toy import QUICK, refused, tensors_of, train, write_encoder
from tests.toy_dataset import NAME, PLANS, set_environment, toy_plans, write_preprocessed, write_raw

BLOCKS = 4
SHORT = {"depth": BLOCKS}  # options of vit_tiny_8
UNUSED = ("norm.", "mask_token")  # beside the road from the image to the logits


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    target = write_preprocessed(folder, write_raw(folder))
    (target / f"{PLANS}.json").write_text(json.dumps(short_plans()))
    return folder


@pytest.fixture
def results(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    set_environment(toy, monkeypatch)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    return tmp_path / "results" / NAME


def short_plans() -> dict[str, Any]:
    """Plans for an encoder of four blocks."""
    plans = toy_plans()
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["encoder_options"] = SHORT
    return plans


def model(results: Path, run: str) -> Path:
    return results / f"FrozenEncoderTrainer__{PLANS}_{run}__3d_fullres"


def changed_by(results: Path, file: Path, run: str, *words: str) -> tuple[set[str], set[str], str]:
    """(encoder tensors that moved, that are new, the log) of a run with a weight file."""
    settings = ["--set", "epochs=1", "iterations_per_epoch=2", "warmup_fraction=0"]
    assert train("-pretrained_weights", file, "-run", run, *words, *QUICK[:3], *settings) == 0
    fold = model(results, run) / "fold_0"
    after = torch.load(fold / "checkpoint_final.pth", weights_only=True)["network_weights"]
    after = {
        name.removeprefix("neck.encoder."): value for name, value in after.items() if name.startswith("neck.encoder.")
    }
    before = tensors_of(file)
    assert before.keys() <= after.keys()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    return moved, after.keys() - before.keys(), next(fold.glob("training_log*")).read_text()


def test_full_last_blocks_and_low_rank_train_what_they_say(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_encoder(tmp_path / "encoder.safetensors", encoder_options=SHORT)
    names = {name for name in tensors_of(file) if not name.startswith(UNUSED)}

    moved, new, log = changed_by(results, file, "full", "--full")
    assert names - moved <= {f"blocks.{block}.attn.qkv.bias" for block in range(BLOCKS)}  # keys' gradient is rounding
    assert not new and " (3 of 63 tensors)" in log  # mask token and final norm: not used under the adapter
    assert "trained: full" in capsys.readouterr().out

    moved, new, log = changed_by(results, file, "last", "-unfreeze_last", "2")
    last = {name for name in names if name.startswith(("blocks.2.", "blocks.3."))}
    assert {name for name in moved if not name.startswith("norm.")} <= last
    assert len(moved & last) >= len(last) - 2 and not new
    assert "frozen part of the encoder unchanged: sha256" in log and " of 63 tensors)" in log

    moved, new, log = changed_by(results, file, "lora", "-lora", "2")
    assert moved == set() and len(new) == BLOCKS * 4 and " (63 of 79 tensors)" in log
    run = json.loads((model(results, "lora") / "plans.json").read_text())
    assert run["nnssl"]["run"]["tuning"] == "lora 2"
    assert run["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["lora_rank"] == 2
    assert train("-run", "lora", "--c", "-unfreeze_last", "2", *QUICK[:3]) == 2
    assert "not --set unfreeze_last=2" in capsys.readouterr().err


def test_stock_nnunet_rebuilds_the_tuned_network(results: Path, tmp_path: Path) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    file = write_encoder(tmp_path / "encoder.safetensors", encoder_options=SHORT)
    assert train("-pretrained_weights", file, "-run", "lora", "-lora", "2", "-decoder", "unetr", *QUICK) == 0
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model(results, "lora")), (0,), "checkpoint_final.pth")
    weights = torch.load(model(results, "lora") / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert type(predictor.network).__name__ == "EncoderSegmentor"
    assert type(predictor.network.decoder).__name__ == "UNETRDecoder"
    assert all(
        torch.equal(value, weights["network_weights"][name]) for name, value in predictor.network.state_dict().items()
    )


def test_lower_layers_learn_more_slowly_all_through_the_schedule(results: Path, tmp_path: Path) -> None:
    file = write_encoder(tmp_path / "encoder.safetensors", encoder_options=SHORT)
    words = ["-pretrained_weights", str(file), "--full", "-device", "cpu"]
    settings = ["--set", "layer_decay=0.5", "lr=0.01", "epochs=2", "iterations_per_epoch=4", "warmup_fraction=0.25"]
    asked = request(build_parser().parse_args([NAME, "3d_fullres", "0", "-p", PLANS, *words, *settings]))
    trainer = start(asked).trainer
    rates = {}
    for iteration, expected in ((0, 0.0), (2, 0.01), (5, 0.005)):
        trainer.lr_scheduler._set(iteration)
        for group in trainer.optimizer.param_groups:
            rates |= {id(parameter): group["lr"] for parameter in group["params"]}
        encoder = trainer.bare_network().encoder
        for block in range(BLOCKS):
            rate = rates[id(encoder.blocks[block].attn.qkv.weight)]
            assert rate == pytest.approx(expected * 0.5 ** (BLOCKS - block))
        assert rates[id(encoder.patch_embed.proj.weight)] == pytest.approx(expected * 0.5 ** (BLOCKS + 1))
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(expected)
    assert math.isclose(trainer.optimizer.param_groups[0]["weight_decay"], 0.01)


def test_a_random_encoder_trained_from_scratch_has_one_learning_rate(results: Path) -> None:
    words = [NAME, "3d_fullres", "0", "-p", PLANS, "--from_scratch", "-device", "cpu", "--set", "layer_decay=0.5"]
    trainer = start(request(build_parser().parse_args(words))).trainer
    assert len({group["lr"] for group in trainer.optimizer.param_groups}) == 1


def test_options_other_than_planned_are_refused(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, results, "-pretrained_weights", write_encoder(tmp_path / "whole.safetensors"))
    assert "holds vit_tiny_8 with the table's options, but the plans are for depth=4; plan again with" in line
    file = write_encoder(tmp_path / "other.safetensors", encoder_options={"depth": 3, "heads": 1})
    line = refused(capsys, results, "-pretrained_weights", file)
    assert "with depth=3, heads=1, but the plans are for depth=4; plan again with" in line


@pytest.mark.parametrize("channels", ["mix", "replicate"])
def test_the_encoder_is_loaded_for_the_channels_it_will_read(tmp_path: Path, channels: str) -> None:
    torch.manual_seed(1)
    file = write_encoder(tmp_path / "encoder.safetensors", encoder_options=SHORT)
    plans = short_plans()
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["CTNormalization"] * 3
    changed = run_plans(plans, "3d_fullres", RunOptions(settings=(f"channels={channels}",)))
    found, encoder, _ = load_for_plans(file, changed, "3d_fullres", allow_partial=False, allow_intensity=False)
    together = 1 if channels == "mix" else 3
    assert encoder.spec.input_channels == together and found.options == SHORT
    volume = torch.rand(1, 1, 16, 16, 16)
    single = build_encoder("vit_tiny_8", native_crop=(16, 16, 16), options=SHORT)
    single.load_state_dict(tensors_of(file))
    with torch.no_grad():
        expected = single.eval()(volume).maps[0]
        assert torch.allclose(encoder.eval()(volume.expand(-1, together, -1, -1, -1)).maps[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--from_scratch", "-lora", "2"], "goes with -pretrained_weights"),
        (["--random_frozen", "-decoder", "nix"], "known decoders: unet"),
        (["--random_frozen", "-decoder", "swin_unetr"], "decoders that suit it"),
        (["--random_frozen", "-channels", "sum"], "known: mix, replicate, reinit"),
        (["--random_frozen", "--set", "loss=bce_dice"], "has 2 (Ball, Half); use --set loss=ce_dice"),
        (["--random_frozen", "--set", "loss=dice"], "known: ce_dice, bce_dice"),
    ],
)
def test_bad_words_about_the_network_end_in_one_line(
    results: Path, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    assert reason in refused(capsys, results, *words)
