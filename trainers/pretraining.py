"""The pretraining loop: one straight pass over the steps, for every pretext task, on any number of processes."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnssl.config import to_dict
from nnssl.losses.processes import rank
from nnssl.networks.precision import has_fast_bf16
from nnssl.pretext.base import PretextTask
from nnssl.recipe import PretrainRecipe
from nnssl.trainers import checkpoints
from nnssl.trainers.collapse import CollapseWatch
from nnssl.trainers.flops import FlopMeter
from nnssl.trainers.learning import Batch, Learner, not_finite
from nnssl.trainers.optimiser import Rates, rates_at
from nnssl.trainers.processes import check_divisible, told_by_first
from nnssl.trainers.saving import Saver
from nnssl.trainers.signals import StopRequest

CHECKPOINT = checkpoints.LATEST
FREE_TO_CHANGE = (
    "save_every",
    "milestone_every",
    "recompute",
)  # nothing that is learnt depends on them

BatchesFrom = Callable[[int], Iterator[Batch]]


class Watcher:
    """Told about every step and every save, in the first process; the default watches nothing."""

    def started(self, first_step: int) -> None:
        """Training begins at `first_step` (above 0 in a continued run)."""

    def stepped(self, step: int, values: dict[str, float]) -> None:
        """Step `step` is done; `values` are its losses, rates, gradient norms and seconds."""

    def saved(self, steps_done: int, state: dict[str, Tensor]) -> None:
        """A checkpoint was written; `state` is the task's then, on the CPU. Called in the thread that wrote it."""


@dataclass(frozen=True)
class Run:
    """Where and how a run computes, what it writes, and who watches."""

    folder: Path  # checkpoint_latest.pt is written here
    device: torch.device
    autocast: torch.dtype | None = None  # None: float32
    resume: bool = False
    watcher: Watcher = field(default_factory=Watcher)
    parallel: str = "ddp"  # or "fsdp"; matters with several processes
    accumulate: int = 1  # micro-batches per step and process; terms that couple a batch see one of them


def pretrain(task: PretextTask, batches: BatchesFrom, *, recipe: PretrainRecipe, run: Run) -> int:
    """Train `task` for `recipe.steps` steps and save it every `recipe.save_every` steps and at the end.

    Nothing is saved while a run looks collapsed. A continued run repeats an uninterrupted one bit for bit on one
    machine. After SIGTERM or SIGUSR1 the step is finished and saved.

    Args:
        batches: batches(k) gives this process's shares of the collated `task.prepare` outputs from step k on.

    Returns:
        Steps done; fewer than `recipe.steps` where the run was asked to stop.

    Raises:
        ValueError: loss or gradient is not finite, the run has collapsed, or the checkpoint has other settings.
    """
    check_divisible(recipe.batch_size, run.accumulate)
    task.to(run.device).train()
    state = _resume(task, recipe, run.folder) if run.resume else {}
    learner = Learner(task, recipe, autocast=run.autocast, parallel=run.parallel, accumulate=run.accumulate)
    if state:
        learner.load_optimiser(state.pop("optimiser"))
    first, watch, meter = state.get("steps_done", 0), CollapseWatch(recipe), FlopMeter(run.device, run.autocast)
    with StopRequest() as stop, Saver() as saver:
        run.watcher.started(first)
        stream = batches(first) if first < recipe.steps else iter(())
        for step in range(first, recipe.steps):
            begun = time.perf_counter()
            batch = _move(next(stream), run.device)
            loaded = time.perf_counter()
            rates = rates_at(step, recipe)
            with meter.counting():
                values = learner.learn(step, batch, rates)
            if problem := not_finite(values) or watch.see(step, values):
                saver.finish()
                raise _stopped(step, problem, run.folder)
            run.watcher.stepped(step, values | _costs(rates, recipe, meter, begun=begun, loaded=loaded))
            saver.check()
            stopping, done = stop.made(run.device), step + 1
            if done == recipe.steps or ((stopping or done % recipe.save_every == 0) and not watch.suspicious):
                _save(learner, saver, run, done)
            if stopping:
                return done
    return recipe.steps


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the hardware computes in it (GPU from Ampere on, CPU with AVX512-BF16 or AMX), else None."""
    return torch.bfloat16 if has_fast_bf16(device.type) else None


def _move(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def _costs(rates: Rates, recipe: PretrainRecipe, meter: FlopMeter, *, begun: float, loaded: float) -> dict[str, float]:
    seconds = time.perf_counter() - begun
    return {
        "lr": rates.lr,
        "weight_decay": rates.weight_decay,
        "seconds": seconds,
        "seconds_data": loaded - begun,
        "samples_per_s": recipe.batch_size / seconds,
        **meter.rates(seconds),
    }


def _stopped(step: int, reason: str, folder: Path) -> ValueError:
    kept = "no checkpoint was written yet"
    if checkpoints.has_checkpoint(folder):
        path, state = checkpoints.load_latest(folder)
        kept = f"{path.name} holds the last good state, after {state['steps_done']} steps"
    return ValueError(
        f"pretraining stopped at step {step}: {reason}; {kept}; start a new run with a lower base_lr or a clip_norm of "
        "1 to 3 (--set base_lr=... clip_norm=...); --set collapse_steps=0 overlooks a collapse"
    )


def _save(learner: Learner, saver: Saver, run: Run, steps_done: int) -> None:
    """Copy the state of all processes; the first one writes it in a thread."""
    task, recipe = learner.task, learner.recipe
    state = {"steps_done": steps_done, **learner.state(), "recipe": to_dict(recipe), "config": to_dict(task.config)}
    if rank() == 0:
        milestone = bool(recipe.milestone_every) and steps_done % recipe.milestone_every == 0

        def write() -> None:
            checkpoints.save_latest(run.folder, state, milestone=milestone)
            run.watcher.saved(steps_done, state["task"])

        saver.start(write)


def _resume(task: PretextTask, recipe: PretrainRecipe, folder: Path) -> dict[str, Any]:
    """Load the task's state and return the rest; empty where the run was cut before its first checkpoint."""
    path, state = _agreed_checkpoint(folder)
    if not state:
        return state
    check_same_settings(state["recipe"] | state["config"], to_dict(recipe) | to_dict(task.config))
    try:
        task.load_state_dict(state.pop("task"))
    except RuntimeError as error:
        raise ValueError(f"continuing from {path}: it belongs to another task or encoder; {error}") from error
    return state


def _agreed_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that the first process finds whole, read by all."""
    if rank() > 0:
        name = told_by_first("")
        return folder / name, checkpoints.load_checkpoint(folder / name) if name else {}
    checkpoints.remove_leftovers(folder)
    path, state = checkpoints.load_latest(folder) if checkpoints.has_checkpoint(folder) else (folder, {})
    told_by_first(path.name if state else "")
    return path, state


def check_same_settings(saved: dict[str, object], now: dict[str, object]) -> None:
    """A continued run keeps its settings, all but FREE_TO_CHANGE; otherwise it would not be the same run."""
    changed = [name for name in saved | now if saved.get(name) != now.get(name) and name not in FREE_TO_CHANGE]
    if changed:
        named = ", ".join(f"{name}={saved.get(name)} became {now.get(name)}" for name in changed)
        raise ValueError(f"continuing a run with other settings: {named}; give the earlier values or a new -run NAME")
