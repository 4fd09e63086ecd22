"""Two processes that share a batch learn what one process learns from the joint batch, in every task."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, multiprocessing
from torch import distributed as dist

from nnssl.layers.joint_batch import joint_batch
from nnssl.pretext import TASKS
from nnssl.pretext.base import PretextTask
from tests.pretext.toys import ENCODERS, RECIPE, prepared, toy_batch, toy_task

IMAGES, PROCESSES = 4, 2
STEP, TOTAL = 3, 10
DROPPING = ("dino", "threedino")  # also with stochastic depth; the second shows stacks of 2 and of 3 views
Learnt = dict[str, Tensor]


def _task(name: str, family: str, *settings: str) -> PretextTask:
    task = toy_task(name, settings, family=family, recipe=replace(RECIPE, batch_size=IMAGES)).double().train()
    task.begin_step(STEP, TOTAL)
    return task


def _scope(name: str, scope: str) -> list[str]:
    return [f"scope={scope}"] if hasattr(TASKS[name].Config(), "scope") else []


def _joint_batch(task: PretextTask) -> Learnt:
    return {
        key: value.double() if value.is_floating_point() else value
        for key, value in toy_batch(task, images=IMAGES).items()
    }


def _own(batch: Learnt, rank: int) -> Learnt:
    """The rows of one process of view-major stacks (V * B, ...)."""
    return {
        key: torch.cat([view.chunk(PROCESSES)[rank] for view in value.chunk(len(value) // IMAGES)])
        for key, value in batch.items()
    }


def _learn(task: PretextTask, batch: Learnt) -> Learnt:
    """Gradients of the own rows, averaged over processes as data-parallel training does, and the moved centres."""
    torch.manual_seed(STEP)  # as the pretraining loop does at every step
    processes, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    with joint_batch(IMAGES // processes, rank=rank, processes=processes):
        task(batch)["loss"].backward()
    learnt = {}
    for part, module in task.trained_parts().items():
        for key, parameter in module.named_parameters():
            if parameter.grad is not None:
                if dist.is_initialized():
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= PROCESSES
                learnt[f"{part}.{key}"] = parameter.grad
    task.after_step(STEP, TOTAL)
    return learnt | {name: buffer for name, buffer in task.named_buffers() if name.endswith("_centre")}


def _learn_in_one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    batches = torch.load(f"{folder}/batches.pt", weights_only=True)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    found: dict[str, Any] = {}
    for (name, family), batch in batches.items():
        for scope in ("global", "process"):
            found[f"{name} {family} {scope}"] = _learn(_task(name, family, *_scope(name, scope)), _own(batch, rank))
        if name in DROPPING:
            found[f"{name} {family} dropping"] = _learn(_task(name, family, "drop_path=0.3"), _own(batch, rank))
        if name == "threedino":
            task = _task(name, family)
            own = {key: value.chunk(PROCESSES)[rank] for key, value in prepared(task, images=IMAGES).items()}
            found[f"mask {family}"] = task.augment(own, torch.Generator().manual_seed(0))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[tuple[str, str], Learnt], list[dict[str, Learnt]]]:
    folder = str(tmp_path_factory.mktemp("processes"))
    batches = {(name, family): _joint_batch(_task(name, family)) for name in TASKS for family in ENCODERS}
    torch.save(batches, f"{folder}/batches.pt")
    multiprocessing.spawn(_learn_in_one_of_two, args=(folder,), nprocs=PROCESSES)
    return batches, [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.mark.slow
@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize(
    ("name", "what"), [*((name, "global") for name in TASKS), *((name, "dropping") for name in DROPPING)]
)
def test_gradients_and_centres_of_two_processes_are_those_of_the_joint_batch(
    name: str, what: str, family: str, runs: tuple[dict[tuple[str, str], Learnt], list[dict[str, Learnt]]]
) -> None:
    batches, found = runs
    dropped = ("drop_path=0.3",) if what == "dropping" else ()
    expected = _learn(_task(name, family, *dropped), batches[name, family])
    for process in found:
        learnt, whole = process[f"{name} {family} {what}"], process[f"{name} {family} global"]
        _assert_same(learnt, expected)
        if dropped:  # and branches were dropped
            assert any(not torch.allclose(learnt[key], whole[key], rtol=1e-2) for key in whole)


def _assert_same(learnt: Learnt, expected: Learnt) -> None:
    assert set(learnt) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(learnt[key], value, rtol=1e-5, atol=1e-9, msg=lambda text, key=key: f"{key} {text}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["threedino", "contrastive"])
def test_a_process_may_also_learn_on_its_own_rows_alone(
    name: str, runs: tuple[dict[tuple[str, str], Learnt], list[dict[str, Learnt]]]
) -> None:
    found = runs[1][0]
    together, alone = found[f"{name} vit global"], found[f"{name} vit process"]
    assert any(not torch.allclose(together[key], alone[key], rtol=1e-3) for key in together)


@pytest.mark.slow
@pytest.mark.parametrize("family", ENCODERS)
def test_stratified_masks_of_two_processes_are_those_of_the_joint_batch(
    family: str, runs: tuple[dict[tuple[str, str], Learnt], list[dict[str, Learnt]]]
) -> None:
    batches, found = runs
    joint = batches["threedino", family]["mask"]
    for rank, process in enumerate(found):
        assert process[f"mask {family}"]["mask"].equal(_own({"mask": joint}, rank)["mask"])
