"""iBOT on masked views: both losses against a float64 re-derivation, masks, the centre over all tokens."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from nnssl.pretext.dino import Dino
from nnssl.pretext.ibot import IbotConfig
from tests.pretext.test_dino import FAMILIES, apart, double, expected_image_loss, softmax
from tests.pretext.toys import IMAGES, toy_batch, toy_task


@torch.no_grad()
def expected_patch_loss(task: Dino, seen: torch.Tensor, taught: torch.Tensor, mask: np.ndarray) -> float:
    """Tokens (2B, N, D) of student and teacher -> loss, view by view and token by token."""
    temperature = task.temperatures["patch_head"]
    centre = task.patch_centre.numpy()
    targets = softmax((task.teacher.parts["patch_head"](taught).numpy() - centre) / temperature)
    guesses = np.log(softmax(task.student["patch_head"](seen).numpy() / 0.1))
    views = []
    for view in range(2 * IMAGES):
        entropies = [-(targets[view, i] * guesses[view, i]).sum() for i in range(mask.shape[1]) if mask[view, i]]
        views.append(sum(entropies) / max(1, len(entropies)))
    return float(np.mean(views))


@FAMILIES
def test_both_losses_equal_their_definitions(family: str) -> None:
    task = apart("ibot", family, "image_weight=0.5", "patch_weight=2")
    batch = double(toy_batch(task))
    with torch.no_grad():
        seen, taught = task.encoder(batch["views"], batch["mask"]), task.result()(batch["views"])
    image = expected_image_loss(task, seen.summary, taught.summary)
    patch = expected_patch_loss(task, seen.tokens["patch"], taught.tokens["patch"], batch["mask"].numpy())
    numbers = {key: value.item() for key, value in task(batch).items()}
    assert numbers["image"] == pytest.approx(image, rel=1e-9)
    assert numbers["patch"] == pytest.approx(patch, rel=1e-6)  # weights of tokens are float32
    assert numbers["loss"] == pytest.approx(0.5 * image + 2 * patch, rel=1e-6)


def test_each_view_hides_its_own_tokens() -> None:
    task = toy_task("ibot", ["mask_ratio=0.5"])
    mask = toy_batch(task)["mask"]
    assert mask.sum(1).tolist() == [4] * 2 * IMAGES
    assert len({tuple(row) for row in mask.tolist()}) > 3


def test_the_patch_centre_follows_all_tokens_hidden_or_not() -> None:
    task = apart("ibot").train()
    batch, before = double(toy_batch(task)), task.patch_centre.clone()
    with torch.no_grad():
        logits = task.teacher.parts["patch_head"](task.result()(batch["views"]).tokens["patch"])
    task(batch)
    task.after_step(0, 10)
    expected = 0.9 * before + 0.1 * logits.flatten(0, 1).mean(0, keepdim=True)
    torch.testing.assert_close(task.patch_centre, expected)


@pytest.mark.parametrize(("start", "array"), [(0.0, "global"), (0.06, "patch")])
def test_the_patch_temperature_rises_at_once_or_after_the_global_one(
    golden: Callable[[str], Any], start: float, array: str
) -> None:
    """Paper: both within 30 of 500 epochs; code: patches in epochs 30 to 59."""
    file, task = golden("g07_smit_losses.npz"), toy_task("ibot", [f"patch_ramp_start={start}"])
    assert isinstance(task, Dino)
    for epoch, image, patch in zip(file["temps.epoch"], file["temps.global"], file[f"temps.{array}"], strict=True):
        task.begin_step(int(epoch), 500)
        assert task.temperatures["image_head"] == pytest.approx(image, rel=1e-12)
        assert task.temperatures["patch_head"] == pytest.approx(patch, rel=1e-12)


def test_defaults_are_the_benchmarks() -> None:
    config = IbotConfig()
    assert (config.mask_ratio, config.image_weight, config.patch_weight) == (0.75, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"mask_ratio=0\.0: must be above 0"):
        IbotConfig(mask_ratio=0.0)
