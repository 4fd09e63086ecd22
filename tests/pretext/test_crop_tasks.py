"""The tasks without a teacher: what they show the encoder, what they compare, and what their settings change."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nnssl.encoders import encoder_spec
from nnssl.pretext import TASKS, build_task
from nnssl.transforms.masking import hidden_voxels
from tests.pretext.toys import CROP, IMAGES, RECIPE, optimiser_of, prepared, toy_batch, toy_spec, toy_task, toy_volumes

RECONSTRUCTING = ("reconstruction", "inpainting", "simmim")
PAPER: dict[str, dict[str, Any]] = {
    "reconstruction": {"loss": "l2", "decoder": "linear", "drop_path": 0.0},
    "inpainting": {"loss": "l2", "corruption": 0.3, "swap": 0.0},
    "simmim": {"loss": "l2", "mask_ratio": 0.75},
    "contrastive": {"view_sampling": "whole", "temperature": 0.5, "scope": "global"},
    "rotation": {"classes": 4, "axis": 2},
    "swin_unetr": {"loss": "l1", "weights": (1.0, 1.0, 1.0), "corruption": 0.3, "axis": 2, "read": "pooled"},
}


def _image(task: Any, batch: dict[str, Tensor]) -> Tensor:
    """What the decoder draws."""
    with torch.no_grad():
        return task.student["decoder"](task.encoder(batch["views"], batch.get("mask")).maps[-1])


@pytest.mark.parametrize("name", PAPER)
def test_defaults_are_the_papers(name: str) -> None:
    config = TASKS[name].Config()
    assert {key: getattr(config, key) for key in PAPER[name]} == PAPER[name]
    assert TASKS[name].RECIPE["base_lr"] == 2e-4 and TASKS[name].RECIPE["warmup_fraction"] == 30 / 500


@pytest.mark.parametrize("name", RECONSTRUCTING)
@pytest.mark.parametrize(("loss", "power"), [("l2", 2), ("l1", 1)])
def test_the_error_is_the_mean_over_the_voxels_that_count(name: str, loss: str, power: int) -> None:
    task = toy_task(name, [f"loss={loss}"], family="swin")
    batch = toy_batch(task)
    truth = batch.get("target", batch["image"]).double().numpy()
    difference = np.abs(_image(task, batch).double().numpy() - truth) ** power
    if name == "simmim":
        hidden = np.kron(batch["mask"].view(-1, 1, 2, 2, 2).numpy(), np.ones((16, 16, 16))).astype(bool)
        difference = difference[hidden]
    assert task(batch)["loss"].item() == pytest.approx(difference.mean(), rel=1e-5)


@pytest.mark.parametrize("name", (*RECONSTRUCTING, "swin_unetr"))
def test_targets_are_crops_of_the_stored_volume_in_zero_to_one(name: str) -> None:
    task = toy_task(name)
    batch = toy_batch(task)
    truth = batch.get("target", batch["image"])
    assert truth.min() >= 0 and truth.max() <= 1 and truth.dtype == torch.float32
    if name in ("reconstruction", "simmim"):
        torch.testing.assert_close(batch["views"], 2 * truth - 1)


def test_simmim_ignores_visible_voxels() -> None:
    task = toy_task("simmim")
    batch = toy_batch(task)
    hidden = hidden_voxels(batch["mask"], task.spec.token_grid(CROP), task.spec.token_stride)
    visible_changed = batch | {"image": torch.where(hidden, batch["image"], 5.0)}
    hidden_changed = batch | {"image": torch.where(hidden, 5.0, batch["image"])}
    assert task(visible_changed)["loss"] == task(batch)["loss"] < task(hidden_changed)["loss"]


def test_simmim_masks_differ_between_samples_and_follow_the_ratio() -> None:
    recipe = replace(RECIPE, global_crop=(64, 64, 64), local_crop=(32, 32, 32))
    task = toy_task("simmim", ["mask_ratio=0.7"], recipe=recipe)
    mask = prepared(task)["mask"]
    assert mask.shape == (IMAGES, 1, 64) and mask.sum(2).flatten().tolist() == [45] * IMAGES
    assert len({row.numpy().tobytes() for row in mask}) == IMAGES


def test_inpainting_corrupts_the_input_and_not_the_target() -> None:
    task = toy_task("inpainting")
    batch = prepared(task)
    changed = (batch["views"] != batch["target"]).float().mean((1, 2, 3, 4, 5))
    assert changed.max() > 0.01 and changed.max() < 0.35
    plain = prepared(toy_task("reconstruction"))["views"]
    assert batch["target"].shape == plain.shape and batch["target"][0].equal(plain[0])  # the first draws are the crop's


def test_swapped_boxes_are_an_option_on_top() -> None:
    both, cut = (toy_task("inpainting", [f"swap={swap}"]) for swap in (0.3, 0.0))
    batch = prepared(cut)
    cut_only, swapped = (task.augment(batch, torch.Generator().manual_seed(1)) for task in (cut, both))
    assert not swapped["views"].equal(cut_only["views"])
    assert swapped["target"].equal(cut_only["target"])
    values = set(cut_only["views"].flatten().tolist())
    assert set(swapped["views"].flatten().tolist()) <= values  # boxes move, nothing new appears


@pytest.mark.parametrize("name", ["contrastive", "swin_unetr"])
def test_the_two_halves_of_a_batch_are_views_of_the_same_volumes(name: str) -> None:
    task = toy_task(name, ["corruption=0"] if name == "swin_unetr" else [])
    constant = [torch.full((1, 40, 40, 40), (index + 1) / 4) for index in range(IMAGES)]
    samples = [task.prepare(volume, torch.Generator().manual_seed(0)) for volume in constant]
    stacked = {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}
    views = task.augment(stacked, torch.Generator())["views"]
    assert views.shape == (2 * IMAGES, 1, *CROP)
    np.testing.assert_allclose(views.mean((1, 2, 3, 4)), [-0.5, 0, 0.5] * 2, atol=1e-6)


def test_views_can_be_kept_close_together() -> None:
    place = torch.arange(96.0).view(1, 96, 1, 1).expand(1, 96, 32, 32)
    for sampling, closest in (("min_overlap", 16), ("subvolume", 11), ("whole", 64)):
        task = toy_task("contrastive", [f"view_sampling={sampling}"])
        views = [task.prepare(place, torch.Generator().manual_seed(seed))["views"] for seed in range(60)]
        gaps = [abs(float(view[0, 0, 0, 0, 0] - view[1, 0, 0, 0, 0])) for view in views]
        assert 0.5 * closest < max(gaps) <= closest


@pytest.mark.parametrize("name", ["rotation", "swin_unetr"])
@pytest.mark.parametrize("axis", [0, 2])
def test_undoing_the_named_turn_gives_a_crop_of_the_volume(name: str, axis: int) -> None:
    task = toy_task(name, [f"axis={axis}"])
    volume = torch.stack(torch.meshgrid(*(torch.arange(40.0) for _ in range(3)), indexing="ij")).sum(0)[None] / 200
    plane = [(1, 2), (2, 0), (0, 1)][axis]
    for seed in range(6):
        sample = task.prepare(volume, torch.Generator().manual_seed(seed))
        for view, turn in zip(sample.get("target", sample["views"]), sample["turn"].tolist(), strict=True):
            straight = np.rot90(view[0].numpy(), -turn, plane)
            assert (np.diff(straight, axis=0) > 0).all() and (np.diff(straight, axis=1) > 0).all()
            assert (np.diff(straight, axis=2) > 0).all()


def test_the_24_orientations_are_an_option() -> None:
    task = toy_task("rotation", ["classes=24"])
    turns = torch.cat([prepared(task, seed)["turn"].flatten() for seed in range(40)])
    assert turns.max() > 15 and task.student["classifier"].out_features == 24
    assert task(toy_batch(task))["loss"].item() == pytest.approx(math.log(24), rel=0.3)


@pytest.mark.parametrize(
    ("name", "setting"), [("rotation", "axis=0"), ("rotation", "classes=24"), ("swin_unetr", "axis=1")]
)
def test_a_crop_that_a_turn_does_not_map_onto_itself_is_refused(name: str, setting: str) -> None:
    recipe = replace(RECIPE, global_crop=(32, 32, 64))
    with pytest.raises(ValueError, match="that change places must be equal; take a cubic crop"):
        toy_task(name, [setting], recipe=recipe)
    toy_task("rotation", ["axis=2"], recipe=recipe)


def test_swin_unetr_is_the_weighted_sum_of_its_parts() -> None:
    task = toy_task("swin_unetr", ["weights=[2, 0.5, 3]"])
    found = task(toy_batch(task))
    expected = 2 * found["rotation"] + 0.5 * found["contrastive"] + 3 * found["inpainting"]
    assert found["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_part_without_weight_trains_nothing() -> None:
    task = toy_task("swin_unetr", ["weights=[1, 0, 1]"])
    task(toy_batch(task))["loss"].backward()
    projection, classifier = (task.student[head].weight.grad for head in ("projection", "classifier"))
    assert not projection.any() and classifier.any()


def test_corner_heads_read_the_first_two_cells_of_the_normalised_bottleneck() -> None:
    recipe = replace(RECIPE, global_crop=(64, 64, 64), local_crop=(32, 32, 32))
    task = toy_task("swin_unetr", ["read=corner"], family="swin", recipe=recipe)
    batch = toy_batch(task)
    with torch.no_grad():
        bottleneck = task.encoder(batch["views"]).maps[-1]
        cell = F.layer_norm(bottleneck[:, :, 0, 0, 0], bottleneck.shape[1:2])
        rotation = F.cross_entropy(task.student["classifier"](cell), batch["turn"])
        assert task(batch)["rotation"].item() == pytest.approx(rotation.item(), rel=1e-5)
        for head, cells in (("classifier", 0), ("projection", 1)):
            task.student[head].register_forward_pre_hook(_expect(bottleneck[:, :, 0, 0, cells]))
        task(batch)


def _expect(cell: Tensor) -> Any:
    def check(_module: torch.nn.Module, words: tuple[Tensor, ...]) -> None:
        torch.testing.assert_close(words[0], F.layer_norm(cell, cell.shape[1:]))

    return check


@pytest.mark.parametrize("name", ["contrastive", "swin_unetr"])
def test_a_batch_of_one_volume_has_nothing_to_compare(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} tells the volumes of a batch apart: batch_size=1 leaves nothing"):
        toy_task(name, recipe=replace(RECIPE, batch_size=1))
    toy_task(name, recipe=replace(RECIPE, batch_size=2))
    toy_task("swin_unetr", ["weights=[1, 0, 1]"], recipe=replace(RECIPE, batch_size=1))


def test_corner_heads_need_two_cells() -> None:
    with pytest.raises(ValueError, match=r"the coarsest map of a crop of .* has one cell, two are read"):
        toy_task("swin_unetr", ["read=corner"], family="swin")


def test_the_convolutional_decoder_is_an_option_and_learns_too() -> None:
    task = toy_task("reconstruction", ["decoder=convolutions"])
    batch, optimiser, losses = toy_batch(task), optimiser_of(task, lr=2e-3), []
    for _ in range(8):
        losses.append(task(batch)["loss"])
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.9 * losses[0]


def test_a_volume_smaller_than_the_crop_is_padded_with_background() -> None:
    task = toy_task("reconstruction")
    sample = task.prepare(torch.ones(1, 20, 50, 32), torch.Generator().manual_seed(0))
    assert sample["views"].shape == (1, 1, *CROP) and sample["views"].sum() == 20 * 32 * 32
    assert toy_volumes()[0].shape[-1] < CROP[-1]  # the contracts meet this too


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("reconstruction", "loss=l3", "setting loss='l3': allowed are l2, l1"),
        ("reconstruction", "decoder=unet", "setting decoder='unet': allowed are linear, convolutions"),
        ("inpainting", "corruption=1.5", "setting corruption=1.5: must lie between 0 and 1"),
        ("simmim", "mask_ratio=0", "setting mask_ratio=0.0: must be above 0"),
        ("contrastive", "temperature=0", "setting temperature=0.0: must be above 0"),
        ("contrastive", "scope=node", "setting scope='node': allowed are global, process"),
        ("contrastive", "view_sampling=near", "view sampling 'near' is unknown; known: whole"),
        ("rotation", "classes=6", "setting classes=6: allowed are 4, 24"),
        ("swin_unetr", "read=all", "setting read='all': allowed are pooled, corner"),
        ("swin_unetr", "weights=[1, -1, 1]", r"setting weights=\(1.0, -1.0, 1.0\): must be 0 or more"),
    ],
)
def test_a_wrong_setting_says_what_is_allowed(name: str, setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy_task(name, [setting])


def test_tokens_of_8_voxels_are_hidden_in_blocks_of_8() -> None:
    spec = encoder_spec("vit_tiny_8", CROP, intensity=toy_spec().intensity, options={"depth": 1, "dim": 24, "heads": 2})
    task = build_task("simmim", spec, RECIPE)
    mask = prepared(task)["mask"]
    assert mask.shape[2] == 64 and mask.sum(2).flatten().tolist() == [48] * IMAGES
    assert task(toy_batch(task))["loss"].isfinite()
