"""DINO between two views: the loss against a float64 re-derivation, targets, centre, temperature and momentum."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from nnssl.losses.schedules import cosine
from nnssl.pretext.dino import Dino, DinoConfig
from nnssl.pretext.teacher import Teacher
from tests.pretext.toys import IMAGES, toy_batch, toy_task, train

FAMILIES = pytest.mark.parametrize("family", ["vit", "swin"])


def apart(name: str, family: str = "vit", *extra: str) -> Dino:
    """A float64 task whose teacher differs from its student and whose centres are not zero."""
    task, other = toy_task(name, extra, family=family), toy_task(name, extra, family=family, seed=1)
    assert isinstance(task, Dino) and isinstance(task.teacher, Teacher)
    task.teacher.copy(other.trained_parts())
    for name, buffer in task.named_buffers():
        if name.endswith("_centre"):
            torch.nn.init.normal_(buffer, std=0.1)
    return task.double()


def double(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


@torch.no_grad()
def expected_image_loss(task: Dino, seen: Tensor, taught: Tensor) -> float:
    """Tokens (2B, D) of student and teacher -> loss, image by image and pair by pair (SMIT, lines of the spec)."""
    temperature = task.temperatures["image_head"]
    logits = task.teacher.parts["image_head"](taught).numpy() - task.image_centre.numpy()
    targets = softmax(logits / temperature)
    guesses = np.log(softmax(task.student["image_head"](seen).numpy() / 0.1))
    pairs = [(image, image + IMAGES) for image in range(IMAGES)]
    entropies = [-(targets[a] * guesses[b]).sum() - (targets[b] * guesses[a]).sum() for a, b in pairs]
    return float(np.mean(entropies) / 2)


@FAMILIES
def test_the_loss_equals_its_definition(family: str) -> None:
    task = apart("dino", family)
    batch = double(toy_batch(task))
    with torch.no_grad():
        seen, taught = task.encoder(batch["views"]).summary, task.result()(batch["views"]).summary
    assert task(batch)["loss"].item() == pytest.approx(expected_image_loss(task, seen, taught), rel=1e-9)


def test_the_centre_moves_after_the_step_towards_the_mean_of_the_teachers_logits() -> None:
    task = apart("dino").train()
    batch, before = double(toy_batch(task)), task.image_centre.clone()
    with torch.no_grad():
        mean = task.teacher.parts["image_head"](task.result()(batch["views"]).summary).mean(0, keepdim=True)
    task(batch)
    assert task.image_centre.equal(before)
    task.after_step(0, 10)
    torch.testing.assert_close(task.image_centre, 0.9 * before + 0.1 * mean)


def test_the_momentum_follows_the_step_of_the_whole_run() -> None:
    task = apart("dino")
    before = [parameter.clone() for parameter in task.teacher.parameters()]
    students = [parameter for part in task.trained_parts().values() for parameter in part.parameters()]
    task.after_step(400, 500)
    momentum = cosine(400, 500, 0.996, 1.0)
    assert momentum > 0.9995
    for old, new, student in zip(before, task.teacher.parameters(), students, strict=True):
        torch.testing.assert_close(new, momentum * old + (1 - momentum) * student)


def test_the_gain_of_the_prototypes_stays_one_unless_it_is_trained() -> None:
    task, trained = (toy_task("dino", [f"prototype_gain={word}"]) for word in ("fixed", "trained"))
    for one in (task, trained):
        train(one, 2)
    gains = [one.student["image_head"].last_layer.weight_g for one in (task, trained)]
    assert bool((gains[0] == 1).all()) and not bool((gains[1] == 1).all())


def test_the_teacher_starts_as_the_student_and_drops_no_paths() -> None:
    task = toy_task("dino", ["drop_path=0.3"], family="swin")
    assert isinstance(task, Dino)
    batch = toy_batch(task)
    torch.testing.assert_close(task.eval().encoder(batch["views"]).summary, task.teach(batch["views"]).image)
    assert not any(module.training for module in task.train().teacher.modules())


def test_sinkhorn_targets_are_a_setting() -> None:
    losses = [toy_task("dino", [f"centering={word}"]) for word in ("softmax", "sinkhorn")]
    assert len({task(toy_batch(task))["loss"].item() for task in losses}) == 2


def test_uninformative_logits_cost_the_logarithm_of_the_prototypes() -> None:
    task = toy_task("dino", ["prototypes=8192"])
    for parts in (task.student, task.teacher.parts):  # type: ignore[union-attr]
        torch.nn.init.zeros_(parts["image_head"].mlp[4].weight)  # type: ignore[index]
    numbers = task(toy_batch(task))
    assert numbers["loss"].item() == pytest.approx(math.log(8192), rel=1e-5)  # 9.0109
    assert numbers["teacher_entropy"].item() == pytest.approx(1.0, rel=1e-5)


def test_two_views_of_a_small_region_show_the_same_anatomy() -> None:
    volume = torch.arange(64.0**3).view(1, 64, 64, 64) / 64**3
    for sampling, shared in (("min_overlap", 0.5), ("subvolume", 2 / 3)):
        task = toy_task("dino", [f"view_sampling={sampling}"])
        for seed in range(20):
            first, second = task.prepare(volume, torch.Generator().manual_seed(seed))["views"]
            common = np.intersect1d(first.numpy(), second.numpy()).size
            assert common >= (shared * 32 - 1) ** 3, (sampling, seed)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("centering=mean", "allowed are softmax, sinkhorn"),
        ("scope=node", "allowed are global, process"),
        ("prototype_gain=no", "allowed are fixed, trained"),
        ("momentum=[0.9,1.2]", "between 0 and 1"),
        ("teacher_temperature=[0,0.07]", "above 0"),
        ("view_sampling=far", "known: whole"),
    ],
)
def test_an_impossible_setting_says_what_is_allowed(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy_task("dino", [setting])


def test_defaults_are_the_benchmarks() -> None:
    config = DinoConfig()
    assert (config.prototypes, config.student_temperature, config.teacher_temperature) == (8192, 0.1, (0.04, 0.07))
    assert (config.momentum, config.centre_momentum, config.teacher_warmup) == ((0.996, 1.0), 0.9, 30 / 500)
