"""What every pretext task must do on every family of encoders: checks that take a task's name and a family."""

import math
from collections.abc import Callable
from dataclasses import fields
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnssl.encoders.base import Encoder
from nnssl.losses.health import HEALTH
from nnssl.pretext.base import PretextTask
from nnssl.recipe import PretrainRecipe
from nnssl.transforms.masking import hidden_voxels
from tests.pretext.toys import CROP, optimiser_of, toy_batch, toy_task, train

Contract = Callable[[str, str], None]


def the_loss_is_a_finite_scalar_and_every_logged_number_too(name: str, family: str) -> None:
    task = toy_task(name, family=family)
    numbers = task(toy_batch(task))
    assert numbers["loss"].requires_grad
    assert all(value.ndim == 0 and bool(value.isfinite()) for value in numbers.values())
    assert not any(value.requires_grad for key, value in numbers.items() if key != "loss")
    assert set(HEALTH[:2]) <= set(numbers)


def a_gradient_reaches_every_parameter_that_the_task_claims_to_train(name: str, family: str) -> None:
    task = toy_task(name, family=family)
    task(toy_batch(task))["loss"].backward()
    untrained = task.UNTRAINED.get(task.spec.family, ())
    reached = {
        f"{part}.{key}": parameter.grad is not None and bool(parameter.grad.any())
        for part, module in task.trained_parts().items()
        for key, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    claimed = {key: not any(fnmatchcase(key, f"encoder.{pattern}") for pattern in untrained) for key in reached}
    assert reached == claimed
    assert any(claimed[key] for key in reached if key.startswith("encoder."))


def the_loss_falls_on_one_batch_while_nothing_but_the_student_moves(name: str, family: str) -> None:
    task = toy_task(name, family=family)
    batch, optimiser, losses = toy_batch(task), optimiser_of(task, lr=2e-3), []
    while len(losses) < 24 and (not losses or losses[-1] > 0.95 * losses[0]):
        loss = task(batch)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] <= 0.95 * losses[0]


def the_same_seed_gives_the_same_numbers(name: str, family: str) -> None:
    losses = [train(toy_task(name, family=family, seed=seed), 2) for seed in (3, 3)]
    assert losses[0] == losses[1] != train(toy_task(name, family=family, seed=4), 2)


def views_and_augmentation_depend_on_their_generators_only(name: str, family: str) -> None:
    task = toy_task(name, family=family)
    first = toy_batch(task, seed=1)
    torch.rand(7)
    again, other = toy_batch(task, seed=1), toy_batch(task, seed=2)
    assert all(first[key].equal(again[key]) for key in first)
    assert any(not first[key].equal(other[key]) for key in first)


def evaluating_changes_nothing(name: str, family: str) -> None:
    task = toy_task(name, family=family)
    batch, before = toy_batch(task), _state(task)
    copies = {key: value.clone() for key, value in batch.items()}
    first, second = task(batch)["loss"].item(), task(batch)["loss"].item()
    task.eval()
    task(batch)
    assert first == second
    assert all(value.equal(before[key]) for key, value in task.state_dict().items())
    assert all(value.equal(copies[key]) for key, value in batch.items())


def a_state_dict_holds_all_that_training_needs_to_go_on(name: str, family: str) -> None:
    first, second = (toy_task(name, family=family, seed=seed) for seed in (0, 1))
    train(first, 1)
    second.load_state_dict(_state(first))
    assert train(first, 1) == train(second, 1)
    assert all(value.equal(second.state_dict()[key]) for key, value in first.state_dict().items())


def the_encoder_is_trained_and_an_encoder_is_the_result(name: str, family: str) -> None:
    task = toy_task(name, family=family)
    assert task.trained_parts()["encoder"] is task.encoder
    assert isinstance(task.result(), Encoder)
    assert task.result().spec == task.spec and task.spec.native_crop == CROP


def an_encoder_sees_its_own_range(name: str, family: str) -> None:
    task = toy_task(name, family=family)
    for volume, _ in _seen(task, toy_batch(task)):
        assert volume.dtype == torch.float32 and volume.min() >= -1 and volume.max() <= 1 and volume.min() < -0.5


def masks_hide_exactly_the_requested_share_and_what_is_hidden_stays_unseen(name: str, family: str) -> None:
    task = toy_task(name, family=family)
    seen = [(volume, mask) for volume, mask in _seen(task, toy_batch(task)) if mask is not None]
    assert bool(seen) == task.MASKS
    for volume, mask in seen:
        if isinstance(task.config.mask_ratio, float):
            assert mask.sum(1).tolist() == [math.ceil(task.config.mask_ratio * task.tokens)] * len(mask)
        hidden = hidden_voxels(mask, task.spec.token_grid(CROP), task.spec.token_stride)
        assert hidden.float().mean().item() == pytest.approx(mask.float().mean().item())
        with torch.no_grad():
            maps = [task.encoder(torch.where(hidden, value, volume), mask).maps[-1] for value in (volume, -volume)]
        torch.testing.assert_close(*maps)


def bf16_autocast_gives_nearly_the_same_loss(name: str, family: str) -> None:
    task = toy_task(name, family=family)
    batch = toy_batch(task)
    exact = task(batch)["loss"].item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = task(batch)["loss"]
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact, rel=0.05)


def what_the_paper_changes_are_fields_of_the_recipe_and_the_source_is_named(name: str, family: str) -> None:
    task = toy_task(name, family=family)
    assert set(task.RECIPE) <= {field.name for field in fields(PretrainRecipe)}
    assert PretrainRecipe(**task.RECIPE)
    assert len(task.SOURCE) > 10


def an_unknown_setting_lists_the_known_ones(name: str, family: str) -> None:
    with pytest.raises(ValueError, match="no setting 'colour'; known settings: "):
        toy_task(name, ["colour=red"], family=family)


CONTRACTS: list[Contract] = [
    the_loss_is_a_finite_scalar_and_every_logged_number_too,
    a_gradient_reaches_every_parameter_that_the_task_claims_to_train,
    the_loss_falls_on_one_batch_while_nothing_but_the_student_moves,
    the_same_seed_gives_the_same_numbers,
    views_and_augmentation_depend_on_their_generators_only,
    evaluating_changes_nothing,
    a_state_dict_holds_all_that_training_needs_to_go_on,
    the_encoder_is_trained_and_an_encoder_is_the_result,
    an_encoder_sees_its_own_range,
    masks_hide_exactly_the_requested_share_and_what_is_hidden_stays_unseen,
    bf16_autocast_gives_nearly_the_same_loss,
    what_the_paper_changes_are_fields_of_the_recipe_and_the_source_is_named,
    an_unknown_setting_lists_the_known_ones,
]


TRAINING: list[Contract] = [  # some steps each: cheap on a ViT
    the_loss_falls_on_one_batch_while_nothing_but_the_student_moves,
    the_same_seed_gives_the_same_numbers,
    a_state_dict_holds_all_that_training_needs_to_go_on,
]


def _state(task: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in task.state_dict().items()}


def _seen(task: PretextTask, batch: dict[str, Tensor]) -> list[tuple[Tensor, Tensor | None]]:
    """Volumes and masks that the encoder in training is given during one forward."""
    calls: list[tuple[Tensor, Tensor | None]] = []

    def note(module: nn.Module, words: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls.append((words[0], named.get("token_mask", words[1] if len(words) > 1 else None)))

    handle = task.encoder.register_forward_pre_hook(note, with_kwargs=True)
    task(batch)
    handle.remove()
    return calls
