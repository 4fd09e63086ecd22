"""What every pretext task of the table must do, whatever its objective."""

import pytest
import torch
from torch import Tensor

from nnssl.encoders.base import Encoder
from nnssl.pretext import TASKS
from tests.pretext.toys import optimiser_of, prepared, toy_batch, toy_task, train

EVERY_TASK = pytest.mark.parametrize("name", TASKS)


def _state(task: torch.nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in task.state_dict().items()}


@EVERY_TASK
def test_the_loss_is_a_finite_scalar_and_every_logged_number_too(name: str) -> None:
    task = toy_task(name)
    numbers = task(toy_batch(task))
    assert numbers["loss"].requires_grad
    assert all(value.ndim == 0 and bool(value.isfinite()) for value in numbers.values())
    assert not any(value.requires_grad for key, value in numbers.items() if key != "loss")


@EVERY_TASK
def test_a_gradient_reaches_every_trained_parameter(name: str) -> None:
    task = toy_task(name)
    task(toy_batch(task))["loss"].backward()
    for part, module in task.trained_parts().items():
        for key, parameter in module.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, f"{part}.{key}"


@EVERY_TASK
def test_the_loss_falls_on_one_batch_while_nothing_but_the_student_moves(name: str) -> None:
    task = toy_task(name)
    batch, optimiser, losses = toy_batch(task), optimiser_of(task), []
    for _ in range(8):
        losses.append(task(batch)["loss"])
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < losses[0] - 0.1


@EVERY_TASK
def test_the_same_seed_gives_the_same_numbers(name: str) -> None:
    losses = [train(toy_task(name, seed=seed), 2) for seed in (3, 3)]
    assert losses[0] == losses[1] != train(toy_task(name, seed=4), 2)


@EVERY_TASK
def test_views_and_augmentation_depend_on_their_generators_only(name: str) -> None:
    task = toy_task(name)
    first = toy_batch(task, seed=1)
    torch.rand(7)
    again, other = toy_batch(task, seed=1), toy_batch(task, seed=2)
    assert all(first[key].equal(again[key]) for key in first)
    assert not first["global"].equal(other["global"])


@EVERY_TASK
def test_forward_changes_no_state(name: str) -> None:
    task = toy_task(name)
    batch, before = toy_batch(task), _state(task)
    copies = {key: value.clone() for key, value in batch.items()}
    first, second = task(batch)["loss"].item(), task(batch)["loss"].item()
    assert first == second
    assert all(value.equal(before[key]) for key, value in task.state_dict().items())
    assert all(value.equal(copies[key]) for key, value in batch.items())


@EVERY_TASK
def test_a_state_dict_holds_all_that_training_needs_to_go_on(name: str) -> None:
    first, second = toy_task(name, seed=0), toy_task(name, seed=1)
    train(first, 1)
    second.load_state_dict(_state(first))
    assert train(first, 1) == train(second, 1)
    assert all(value.equal(second.state_dict()[key]) for key, value in first.state_dict().items())


@EVERY_TASK
def test_the_encoder_is_trained_and_an_encoder_is_the_result(name: str) -> None:
    task = toy_task(name)
    assert isinstance(task.trained_parts()["encoder"], Encoder)
    assert isinstance(task.result(), Encoder)
    assert task.result().spec.native_crop == (32, 32, 32)


@EVERY_TASK
def test_augmented_volumes_lie_in_the_range_of_the_encoder(name: str) -> None:
    task = toy_task(name)
    crops = toy_batch(task)["global"]
    assert crops.dtype == torch.float32 and crops.min() >= -1 and crops.max() <= 1 and crops.min() < -0.5


@EVERY_TASK
def test_augment_leaves_the_prepared_batch_alone(name: str) -> None:
    task = toy_task(name)
    batch = prepared(task)
    before = {key: value.clone() for key, value in batch.items()}
    task.augment(batch, torch.Generator().manual_seed(0))
    assert all(value.equal(before[key]) for key, value in batch.items())


@EVERY_TASK
def test_bf16_autocast_gives_nearly_the_same_loss(name: str) -> None:
    task = toy_task(name)
    batch = toy_batch(task)
    exact = task(batch)["loss"].item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = task(batch)["loss"]
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact, rel=0.02)


@EVERY_TASK
def test_an_unknown_setting_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match="no setting 'colour'; known settings: "):
        toy_task(name, ["colour=red"])


def test_an_unknown_task_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="pretext task 'jigsaw' is unknown; known tasks: threedino"):
        toy_task("jigsaw")
