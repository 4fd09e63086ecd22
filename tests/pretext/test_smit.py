"""SMIT: losses, centres, temperatures and heads against golden numbers; taps and the sum against a re-derivation."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnssl.layers.heads import ProjectionHead, Prototypes
from nnssl.losses import distillation
from nnssl.pretext.smit import Smit, SmitConfig
from nnssl.transforms.masking import hidden_tokens, hidden_voxels
from tests.pretext.test_dino import FAMILIES, apart, double, expected_image_loss
from tests.pretext.test_ibot import expected_patch_loss
from tests.pretext.toys import toy_batch, toy_task
from tests.rules import golden_error, normal, rule_tensor

B, K, TOKENS = 3, 40, 27
EPOCHS = (0, 15, 30, 45, 60, 300)


class Given(nn.Module):
    """A head whose logits are its tokens, so that golden logits can stand for them."""

    def __init__(self) -> None:
        super().__init__()
        self.last_layer = Prototypes(K, K, trained_gain=False)
        nn.init.eye_(self.last_layer.weight_v)

    def forward(self, logits: Tensor, use: Callable[[Tensor, Prototypes], Tensor]) -> Tensor:
        return use(logits, self.last_layer)


def _logits(key: str, tokens: int, scale: float, shift: float = 0.0) -> Tensor:
    return torch.from_numpy(normal(key, (2 * B, tokens, K), scale, shift))


def _task_on_logits() -> Smit:
    task = toy_task("smit", [f"prototypes={K}", "patch_ramp_start=0.06"]).train()
    assert isinstance(task, Smit)
    for head in task.heads():
        task.student[head] = task.teacher.parts[head] = Given()
    return task


def test_both_distillation_losses_centres_and_gradients_agree_with_the_reference(golden: Callable[[str], Any]) -> None:
    file, task = golden("g07_smit_losses.npz"), _task_on_logits()
    hidden = hidden_tokens(torch.from_numpy(file["token_mask"]).flatten(1).bool())
    for step, epoch in enumerate(EPOCHS):
        task.begin_step(epoch, 500)
        image, patch = (
            _logits(f"student_cls.step{step}", 1, 0.5)[:, 0],
            _logits(f"student_patch.step{step}", TOKENS, 0.5),
        )
        image.requires_grad_(), patch.requires_grad_()
        taught_image = _logits(f"teacher_cls.step{step}", 1, 0.3, 0.1)[:, 0]
        taught_patch = _logits(f"teacher_patch.step{step}", TOKENS, 0.3, 0.1)
        itd, _ = task.image_loss("image_head", image, taught_image)
        mpd = task.patch_loss("patch_head", patch, taught_patch, hidden, crops=2 * B)
        assert [mpd.item(), itd.item()] == pytest.approx(list(file[f"step{step}.mpd_itd_unweighted"]), rel=1e-5)
        config = task.config
        weighted = [config.patch_weight * mpd.item(), config.image_weight * itd.item()]
        assert weighted == pytest.approx(list(file[f"step{step}.mpd_itd_weighted"]), rel=1e-5)
        if step in (0, 3):
            (config.patch_weight * mpd + config.image_weight * itd).backward()
            assert image.grad is not None and patch.grad is not None
            assert golden_error(file, f"step{step}.grad_student_cls", image.grad[:, None].numpy()) < 1e-6
            assert golden_error(file, f"step{step}.grad_student_patch", patch.grad.numpy()) < 1e-6
        _move_centres(task)
        for name, centre in (("global", task.image_centre.numpy()), ("patch", task.patch_centre.numpy())):
            np.testing.assert_allclose(centre, file[f"step{step}.center_{name}_after"], rtol=1e-4, atol=1e-7)


def _move_centres(task: Smit) -> None:
    task.teacher.follow = lambda students, momentum: None  # type: ignore[method-assign]  # nothing to follow here
    task.after_step(0, 500)


def test_heads_on_normalised_tokens_agree_with_the_reference(golden: Callable[[str], Any]) -> None:
    file, width = golden("g07_smit_losses.npz"), 48
    norm = nn.LayerNorm(width, eps=1e-6)
    heads = {
        name: ProjectionHead(width, hidden=64, bottleneck=16, prototypes=72, trained_gain=False)
        for name in ("head_group", "head_cls")
    }
    for prefix, module in (("norm", norm), *heads.items()):
        module.load_state_dict(
            {
                key: torch.from_numpy(rule_tensor(f"{prefix}.{key}", tuple(value.shape)))
                for key, value in module.state_dict().items()
            }
        )
    with torch.no_grad():
        tokens = norm(torch.from_numpy(normal("distill_tokens", (2, 8, width))))
        found = {
            "patch_logits": heads["head_group"](tokens),
            "pooled": tokens.mean(1),
            "global_logits": heads["head_cls"](tokens.mean(1)),
        }
    for name, array in found.items():
        expected = file[f"heads.{name}"] if f"heads.{name}" in file.files else None
        shaped = array.numpy() if expected is None else array.numpy().reshape(expected.shape)
        assert golden_error(file, f"heads.{name}", shaped) < 2e-5, name


@FAMILIES
def test_the_whole_objective_equals_its_definition(family: str) -> None:
    task = apart("smit", family)
    batch = double(toy_batch(task))
    student, teacher = task.student, task.teacher.parts
    with torch.no_grad():
        features, whole = task.encoder(batch["views"], batch["mask"]), task.result()(batch["views"])
        seen, taught = student["norm"](features.tokens["distill"]), teacher["norm"](whole.tokens["distill"])
        guess = student["decoder"](features.maps[-1])
    hidden = hidden_voxels(batch["mask"], (2, 2, 2), 16).expand_as(guess)
    parts = {
        "reconstruction": F.mse_loss(guess[hidden], batch["image"][hidden]).item(),
        "patch": expected_patch_loss(task, seen, taught, batch["mask"].numpy()),
        "image": expected_image_loss(task, seen.mean(1), taught.mean(1)),
    }
    found = {key: value.item() for key, value in task(batch).items()}
    assert {key: found[key] for key in parts} == pytest.approx(parts, rel=1e-6)
    expected = parts["reconstruction"] + 0.1 * parts["patch"] + 0.1 * parts["image"]
    assert found["loss"] == pytest.approx(expected, rel=1e-6)


def test_distillation_leaves_a_swins_last_stage_to_the_reconstruction() -> None:
    task = toy_task("smit", family="swin")
    assert isinstance(task, Smit)
    found = task.distil(toy_batch(task))
    (found.image + found.patch).backward()
    for name, parameter in task.encoder.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.any())
        assert reached == (not name.startswith(("layers.3.", "norm"))), name


def test_the_student_pools_hidden_tokens_too() -> None:
    task = toy_task("smit", family="swin")
    assert isinstance(task, Smit)
    batch = toy_batch(task)
    with torch.no_grad():
        seen = task.tap(task.student, batch["views"], batch["mask"])
    torch.testing.assert_close(seen.image, seen.patches.mean(1))


def test_masked_voxels_alone_are_reconstructed_and_the_code_has_l1() -> None:
    l2, l1 = toy_task("smit"), toy_task("smit", ["loss=l1"])
    batch = toy_batch(l2)
    first, second = (task(batch)["reconstruction"].item() for task in (l2, l1))
    assert first != second
    shown = hidden_voxels(~batch["mask"], (2, 2, 2), 16)
    batch["image"] = torch.where(shown, 1 - batch["image"], batch["image"])
    assert l2(batch)["reconstruction"].item() == first


def test_defaults_are_the_benchmarks() -> None:
    config = SmitConfig()
    assert (config.patch_weight, config.image_weight, config.loss, config.mask_ratio) == (0.1, 0.1, "l2", 0.75)
    assert distillation.moved_centre(torch.ones(1), torch.zeros(1)).item() == pytest.approx(0.9)
