"""3DINO: the whole objective against a float64 re-derivation, and what moves when."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nnssl.losses.schedules import cosine
from nnssl.pretext.threedino import ThreeDino, ThreeDinoConfig
from nnssl.recipe import PretrainRecipe
from tests.pretext.toys import IMAGES, prepared, toy_batch, toy_task, train

LOCAL, TOKENS = 2, 8


def _task(*extra: str, recipe: PretrainRecipe | None = None) -> ThreeDino:
    task = toy_task("threedino", extra, **({} if recipe is None else {"recipe": recipe}))
    assert isinstance(task, ThreeDino)
    return task


def _apart(*extra: str) -> ThreeDino:
    """A float64 task whose teacher differs from its student, with a batch's worth of contrast between images."""
    task, other = _task(*extra), toy_task("threedino", extra, seed=1)
    task.teacher.copy(other.trained_parts())
    return task.double()


def _double(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _sinkhorn(logits: np.ndarray, temperature: float) -> np.ndarray:
    q = np.exp(logits / temperature)
    for _ in range(3):
        q = q / q.sum(0, keepdims=True) / q.shape[1]
        q = q / q.sum(1, keepdims=True) / q.shape[0]
    return q * q.shape[0]


def _koleo(features: np.ndarray) -> float:
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    distance = np.linalg.norm(unit[:, None] - unit[None] + 1e-8, axis=-1) + np.diag([np.inf] * len(unit))
    return float(-np.log(distance.min(1) + 1e-8).mean())


@torch.no_grad()
def _expected(task: ThreeDino, batch: dict[str, Tensor], denominator: int) -> dict[str, float]:
    """Loops over views, images and tokens, from the definitions."""
    student, teacher = task.trained_parts(), task.teacher.parts
    seen, local = student["encoder"](batch["global"], batch["mask"]), student["encoder"](batch["local"])
    target = teacher["encoder"](batch["global"])
    class_targets = _sinkhorn(teacher["dino_head"](target.summary).numpy(), task.temperatures["dino_head"])
    targets = np.split(class_targets, 2)
    globals_ = np.split(_log_softmax(student["dino_head"](seen.summary).numpy() / 0.1), 2)
    locals_ = np.split(_log_softmax(student["dino_head"](local.summary).numpy() / 0.1), LOCAL)
    pairs = [(targets[1], globals_[0]), (targets[0], globals_[1])]
    pairs += [(targets[view], part) for view in range(2) for part in locals_]
    dino = np.mean([-(t * s).sum(-1).mean() for t, s in pairs])

    mask = batch["mask"].numpy()
    positions = [(crop, *np.unravel_index(token, (2, 2, 2))) for crop, token in zip(*np.nonzero(mask), strict=True)]
    pick = [
        torch.stack([map_[crop, :, x, y, z] for crop, x, y, z in positions]) for map_ in (target.maps[0], seen.maps[0])
    ]
    patch_targets = _sinkhorn(teacher["ibot_head"](pick[0]).numpy(), task.temperatures["ibot_head"])
    entropies = -(patch_targets * _log_softmax(student["ibot_head"](pick[1]).numpy() / 0.1)).sum(-1)
    crops = np.array([position[0] for position in positions])
    ibot = sum(entropies[crops == crop].mean() for crop in np.unique(crops)) / denominator
    koleo = 0.1 * sum(_koleo(view) for view in np.split(seen.summary.numpy(), 2))
    return {"dino": dino, "ibot": ibot, "koleo": koleo, "loss": dino + ibot + koleo}


@pytest.mark.parametrize(("denominator", "crops"), [("all", 2 * IMAGES), ("masked", IMAGES)])
def test_the_whole_objective_equals_its_definition(denominator: str, crops: int) -> None:
    task = _apart(f"ibot_denominator={denominator}")
    batch = _double(toy_batch(task))
    found = task(batch)
    for name, value in _expected(task, batch, crops).items():
        assert found[name].item() == pytest.approx(value, rel=1e-6), name  # mask weights are float32


def test_shapes_of_views_and_masks() -> None:
    task = _task()
    raw, batch = prepared(task), toy_batch(task)
    assert raw["global"].shape == (IMAGES, 2, 1, 32, 32, 32) and raw["local"].shape == (IMAGES, LOCAL, 1, 16, 16, 16)
    assert batch["global"].shape == (2 * IMAGES, 1, 32, 32, 32)
    assert batch["local"].shape == (LOCAL * IMAGES, 1, 16, 16, 16)
    assert batch["mask"].shape == (2 * IMAGES, TOKENS)


def test_masks_hide_exactly_the_requested_share() -> None:
    task = _task("mask_ratio=[0.5,0.5]", "mask_probability=0.75")
    hidden = toy_batch(task)["mask"].sum(1)
    assert sorted(hidden.tolist()) == [0, 0] + [TOKENS // 2] * 4


def test_stacks_are_view_major() -> None:
    """Images are constant, so every view of image i keeps its grey value except for the invisible noise."""
    task = _task()
    raw = prepared(task)
    grey = torch.linspace(0.2, 0.8, IMAGES)
    constant = {name: torch.ones_like(crops) * grey.view(-1, 1, 1, 1, 1, 1) for name, crops in raw.items()}
    batch = task.augment(constant, torch.Generator().manual_seed(4))  # a seed without Gibbs, which darkens
    for name, views in (("global", 2), ("local", LOCAL)):
        means = batch[name].flatten(1).mean(1)
        torch.testing.assert_close(means, (2 * grey - 1).repeat(views), atol=5e-3, rtol=0)


def test_the_first_global_view_is_always_blurred_or_sharpened() -> None:
    task = _task()
    stored = prepared(task)["global"].transpose(0, 1).flatten(0, 1)
    changed = torch.zeros(2 * IMAGES)
    for seed in range(20):
        out = (task.augment(prepared(task), torch.Generator().manual_seed(seed))["global"] + 1) / 2
        changed += ((out - stored).abs().flatten(1).amax(1) > 1e-6).float() / 20
    assert changed[:IMAGES].min() > 0.999
    assert 0.7 < changed[IMAGES:].mean() < 0.97  # 1 - 0.2 * 0.9 * 0.8 = 0.86


def test_without_clipping_sharpened_crops_leave_the_range() -> None:
    assert toy_batch(_task("clip=false"))["global"].max() > 1.2


def test_the_student_does_not_see_hidden_patches_but_the_teacher_does() -> None:
    task = _task()
    batch = toy_batch(task)
    altered = dict(batch)
    hidden = batch["mask"].view(-1, 1, 2, 2, 2)
    voxels = hidden.repeat_interleave(16, 2).repeat_interleave(16, 3).repeat_interleave(16, 4)
    altered["global"] = torch.where(voxels, torch.zeros(()), batch["global"])
    first, second = (task.student["encoder"](part["global"], part["mask"]).maps[0] for part in (batch, altered))
    torch.testing.assert_close(first, second)
    assert not torch.allclose(*(task.result()(part["global"]).maps[0] for part in (batch, altered)))


def test_the_teacher_moves_after_the_step_with_the_momentum_of_that_step() -> None:
    task = _apart()
    before = [parameter.clone() for parameter in task.teacher.parameters()]
    students = [parameter for part in task.trained_parts().values() for parameter in part.parameters()]
    task.after_step(30, 100)
    momentum = cosine(30, 100, 0.992, 1.0)
    for old, new, student in zip(before, task.teacher.parameters(), students, strict=True):
        torch.testing.assert_close(new, momentum * old + (1 - momentum) * student)


def test_the_teacher_temperature_follows_the_reference(golden: Callable[[str], Any]) -> None:
    stored, task = golden("g05b_schedules.npz"), _task()
    for step, expected in zip(stored["standard.iterations"], stored["standard.teacher_temp"], strict=True):
        task.begin_step(int(step), 125_000)
        assert list(task.temperatures.values()) == pytest.approx([expected] * 2, rel=1e-12)


def test_student_and_teacher_start_equal_and_only_the_student_drops_paths() -> None:
    task = _task("drop_path=0.3")
    own = {
        f"{name}.{key}": value
        for name, part in task.trained_parts().items()
        for key, value in part.state_dict().items()
    }
    assert all(value.equal(own[key.removeprefix("parts.")]) for key, value in task.teacher.state_dict().items())
    rates = {getattr(module, "drop_path", 0.0) for module in task.teacher.modules()}
    assert rates == {0.0}
    assert any(getattr(module, "drop_path", 0.0) == 0.3 for module in task.student.modules())
    assert task.train().result().training is False and task.student.training


def test_centres_move_after_the_step_and_only_with_softmax_centring() -> None:
    task = _apart("centering=softmax").train()
    batch = _double(toy_batch(task))
    task(batch)
    assert not task.dino_centre.any()
    with torch.no_grad():
        mean = task.teacher.parts["dino_head"](task.result()(batch["global"]).summary).mean(0, keepdim=True)
    task.after_step(0, 10)
    torch.testing.assert_close(task.dino_centre, 0.1 * mean)
    assert task.ibot_centre.any()
    sinkhorn = _task()
    train(sinkhorn, 1)
    assert not sinkhorn.dino_centre.any()


def test_evaluating_a_loss_never_moves_a_centre() -> None:
    task = _task("centering=softmax").eval()
    task(toy_batch(task))
    task.after_step(0, 10)
    assert not task.dino_centre.any() and not task.ibot_centre.any()


def test_non_cubic_crops_are_trained_on() -> None:
    recipe = PretrainRecipe(global_crop=(32, 48, 16), local_crop=(16, 32, 16))
    task = _task(recipe=recipe)
    batch = toy_batch(task)
    assert batch["mask"].shape == (2 * IMAGES, 2 * 3 * 1)
    assert bool(task(batch)["loss"].isfinite())


def test_training_without_local_views_or_masks_is_defined() -> None:
    task = _task("local_views=0", "mask_probability=0")
    numbers = task(toy_batch(task))
    numbers["loss"].backward()
    assert numbers["ibot"].item() == 0.0 and bool(numbers["loss"].isfinite())


def test_a_local_crop_that_does_not_fit_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"nearest is \(16, 16, 16\)"):
        _task(recipe=PretrainRecipe(global_crop=(32, 32, 32), local_crop=(16, 20, 16)))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("centering=mean", "allowed are softmax, sinkhorn"),
        ("depth_axis=3", "allowed are 0, 1, 2"),
        ("mask_ratio=[0.2,1.5]", "between 0 and 1"),
        ("prototypes=0", "above 0"),
        ("local_area=[0.5,2.0]", r"CropRule.area"),
    ],
)
def test_an_impossible_setting_says_what_is_allowed(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _task(setting)


def test_defaults_are_the_published_ones() -> None:
    config = ThreeDinoConfig()
    assert (config.prototypes, config.hidden, config.bottleneck, config.local_views) == (65536, 2048, 256, 8)
    assert (config.centering, config.prototype_gain, config.drop_path) == ("sinkhorn", "trained", 0.3)
    assert (config.momentum, config.teacher_temperature, config.mask_ratio) == ((0.992, 1.0), (0.04, 0.07), (0.2, 0.75))
