"""Every encoder under every decoder that suits it, on real scans: plan, train 50 iterations, predict (`make proof`)."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nnssl.networks import decoders_for
from tests.proof_road import (
    TINY,
    Road,
    check_predictions,
    file_sha256,
    take_cases,
    tensors_sha256,
    tiny_spec,
    trained_encoder,
    write_tiny_encoder,
)

pytestmark = pytest.mark.proof

HEAD_NECK = ("001", "009", "013", "016", "020", "021", "022", "024")  # cases of Dataset101
HEAD_NECK_UNSEEN = ("036", "040")
COARSE_MM = ["-overwrite_target_spacing", "6", "6", "4"]  # crops of 24 to 64 voxels hold a good part of a head
FIFTY = ["epochs=2", "iterations_per_epoch=25", "val_iterations=2", "lr=1e-3", "batch_size=2"]
PAIRS = [(encoder, decoder) for encoder in TINY for decoder in decoders_for(tiny_spec(encoder))]
READS_CHANNELS = {  # by family
    "vit": "patch_embed.proj",
    "swin": "patch_embed.proj",
    "primus": "down_projection.proj",
    "resenc": "stem.convs.0.conv",
}
Report = Callable[[str], None]


@pytest.fixture
def report(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Report:
    """Print a line that pytest does not swallow."""

    def show(text: str) -> None:
        with capsys.disabled():
            print(f"\n{request.node.name}: {text}", flush=True)

    return show


@pytest.fixture
def head_neck(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Road:
    """Eight CT scans to train on, two to predict."""
    cases, unseen = ([f"KBP_{number}" for number in numbers] for numbers in (HEAD_NECK, HEAD_NECK_UNSEEN))
    return take_cases(shared_data / "Dataset101_HeadNeckCT", tmp_path, cases, unseen, monkeypatch)


def travel(road: Road, encoder: str, decoder: str, *tuning: str) -> Path:
    """Plan for a weight file, train 50 iterations on it and predict; returns the file."""
    file = write_tiny_encoder(road.folder / "encoder.safetensors", encoder)
    road.plan("-pretrained_weights", file, "-decoder", decoder, *COARSE_MM)
    road.train("-pretrained_weights", file, *tuning, settings=FIFTY)
    road.predict()
    check_predictions(road, set(range(6)))
    start, end = road.losses
    assert end < start
    return file


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_a_decoder_learns_on_a_frozen_encoder(head_neck: Road, report: Report, encoder: str, decoder: str) -> None:
    file = travel(head_neck, encoder, decoder)
    assert tensors_sha256(trained_encoder(head_neck)) == file_sha256(file)
    report(f"{head_neck.figures()}; encoder unchanged")


@pytest.mark.parametrize(
    ("encoder", "decoder", "tuning"),
    [
        ("swin_tiny", "swin_unetr", ["--full"]),
        ("resenc_l", "unet", ["--full"]),
        ("vit_tiny_16", "unet", ["-unfreeze_last", "2"]),
        ("primus_s", "unetr", ["-unfreeze_last", "2"]),
        ("vit_tiny_8", "unetr", ["-lora", "4"]),
        ("swin_tiny", "unet", ["-lora", "4"]),
    ],
)
def test_only_what_is_unfrozen_learns(
    head_neck: Road, report: Report, encoder: str, decoder: str, tuning: list[str]
) -> None:
    before = load_file(travel(head_neck, encoder, decoder, *tuning))
    after = trained_encoder(head_neck)
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    additions = after.keys() - before.keys()
    if tuning[0] == "-lora":
        assert not moved and additions and all(after[name].isfinite().all() for name in additions)
    else:
        share = len(moved) / len(before)
        assert not additions and (share > 0.9 if tuning[0] == "--full" else 0.05 < share < 0.6)
    report(f"{head_neck.figures()}; {len(moved)} of {len(before)} tensors moved, {len(additions)} added")


@pytest.mark.parametrize(
    ("encoder", "decoder", "channels"),
    [
        ("vit_tiny_16", "unet", "mix"),
        ("vit_tiny_8", "unetr", "reinit"),
        ("swin_tiny", "swin_unetr", "mix"),
        ("swin_tiny", "swin_unetr", "replicate"),
        ("swin_tiny", "unet", "reinit"),
        ("primus_s", "unetr", "replicate"),
        ("resenc_l", "unet", "replicate"),
    ],
)
def test_two_channels_reach_an_encoder_that_was_pretrained_with_one(
    shared_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    report: Report,
    *,
    encoder: str,
    decoder: str,
    channels: str,
) -> None:
    seen, unseen = "BRATS13_0005", "BRATS13_0006"  # the data set has these two
    source = shared_data / "Dataset104_BrainTumour2ch"
    road = take_cases(source, tmp_path, [seen, unseen], [unseen], monkeypatch)
    split = [{"train": [seen], "val": [unseen]}]
    (tmp_path / "nnUNet_raw" / source.name / "splits_final.json").write_text(json.dumps(split), encoding="utf-8")
    file = write_tiny_encoder(tmp_path / "encoder.safetensors", encoder)
    spacing = ["-overwrite_target_spacing", "2", "2", "2"]
    road.plan("-pretrained_weights", file, "-decoder", decoder, "-channels", channels, *spacing)
    road.train("-pretrained_weights", file, settings=FIFTY)
    road.predict()
    check_predictions(road, {0, 1, 2, 4})
    before, after = load_file(file), trained_encoder(road)
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    weight, bias = (f"{READS_CHANNELS[tiny_spec(encoder).family]}.{kind}" for kind in ("weight", "bias"))
    assert moved == {"mix": set(), "replicate": {weight}, "reinit": {weight, bias}}[channels]
    if channels == "replicate":  # two equal channels give what one gave
        assert torch.allclose(after[weight].sum(1, keepdim=True), before[weight], atol=1e-6)
    assert road.losses[1] < road.losses[0]
    report(f"{road.figures()}; of the encoder other than in the file: {', '.join(sorted(moved)) or 'nothing'}")


HEAD_NECK_FEW = ["KBP_001", "KBP_016", "KBP_036", "KBP_040"]
ATRIA = ["LA_001", "LA_002", "LA_003", "LA_004"]


@pytest.mark.parametrize(
    ("recipe", "encoder", "dataset"),
    [
        ("3dino", "vit_tiny_16", "Dataset101_HeadNeckCT"),
        ("smit_many", "swin_tiny", "Dataset101_HeadNeckCT"),
        ("smit_few", "swin_tiny", "Dataset102_LeftAtrium"),
    ],
)
def test_the_papers_recipes_run(
    shared_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    report: Report,
    *,
    recipe: str,
    encoder: str,
    dataset: str,
) -> None:
    cases = ATRIA if recipe == "smit_few" else HEAD_NECK_FEW
    unseen = ["LA_005"] if recipe == "smit_few" else ["KBP_037"]
    road = take_cases(shared_data / dataset, tmp_path, cases, unseen, monkeypatch)
    file = write_tiny_encoder(tmp_path / "encoder.safetensors", encoder)
    road.plan("-pretrained_weights", file, "--recipe", recipe, *(COARSE_MM if recipe == "3dino" else ()))
    road.train("-pretrained_weights", file, settings=["epochs=2", "iterations_per_epoch=1", "val_iterations=1"])
    road.predict()
    check_predictions(road, set(range(6)) if dataset.startswith("Dataset101") else {0, 1})
    unchanged = tensors_sha256(trained_encoder(road)) == file_sha256(file)
    assert unchanged == (recipe == "3dino")
    chosen, finetune = road.plans["configurations"]["3d_fullres"], road.plans["nnssl"]["finetune"]
    single = ("bce_dice", "tumour_1to1") if recipe == "smit_few" else ("ce_dice", "nnunet")
    assert (finetune["loss"], finetune["sampling"]) == single
    spacing = [round(value, 2) for value in chosen["spacing"]]
    what = f"crop {chosen['patch_size']} at {spacing} mm, batch {chosen['batch_size']}"
    report(f"{road.figures()}; {what}, {finetune['loss']}, {finetune['sampling']}")
