"""The pretraining loop: one straight pass over the steps, for every pretext task."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from nnssl.config import to_dict
from nnssl.data.seeds import derived_seed, generator_at
from nnssl.layers.joint_batch import joint_batch
from nnssl.losses.processes import rank, world
from nnssl.networks.precision import has_fast_bf16
from nnssl.pretext.base import PretextTask
from nnssl.recipe import PretrainRecipe
from nnssl.trainers.checkpoints import load_checkpoint, save_checkpoint
from nnssl.trainers.collapse import CollapseWatch
from nnssl.trainers.optimiser import Rates, build_optimiser, rates_at, set_rates

CHECKPOINT = "checkpoint_latest.pt"
_AUGMENT, _NETWORK = 2, 3  # what a derived seed is for; the data stream uses 0 and 1

Batch = dict[str, Tensor]
BatchesFrom = Callable[[int], Iterator[Batch]]


class Watcher:
    """Told about every step and every save; the default watches nothing."""

    def started(self, first_step: int) -> None:
        """Training begins at `first_step` (above 0 in a continued run)."""

    def stepped(self, step: int, values: dict[str, float]) -> None:
        """Step `step` is done; `values` are its losses, rates, gradient norms and seconds."""

    def saved(self, steps_done: int) -> None:
        """A checkpoint was written after `steps_done` steps; the task holds the same weights."""


@dataclass(frozen=True)
class Run:
    """Where a run computes, what it writes, and who watches."""

    folder: Path  # checkpoint_latest.pt is written here
    device: torch.device
    autocast: torch.dtype | None = None  # None: float32
    resume: bool = False
    watcher: Watcher = field(default_factory=Watcher)


def pretrain(task: PretextTask, batches: BatchesFrom, *, recipe: PretrainRecipe, run: Run) -> None:
    """Train `task` for `recipe.steps` steps and save it every `recipe.save_every` steps and at the end.

    A save that falls into steps that look collapsed is left out, so that the checkpoint stays the last good state.
    Same seed, same run: a continued run repeats an uninterrupted one bit for bit on one CPU.

    Args:
        batches: batches(k) gives the stream of collated `task.prepare` outputs from step k on.

    Raises:
        ValueError: loss or gradient is not finite or the run has collapsed (the last good checkpoint stays), or the
            checkpoint has other settings.
        OSError: the disk is full.
    """
    task.to(run.device).train()
    optimiser = build_optimiser(task.trained_parts(), recipe)
    first = _resume(task, optimiser, recipe, run.folder) if run.resume else 0
    run.watcher.started(first)
    if first >= recipe.steps:
        return
    watch, checkpoint = CollapseWatch(recipe), run.folder / CHECKPOINT
    stream = batches(first)
    for step in range(first, recipe.steps):
        begun = time.perf_counter()
        batch = _move(next(stream), run.device)
        loaded = time.perf_counter()
        rates = rates_at(step, recipe)
        set_rates(optimiser, rates)
        values = _learn(task, optimiser, batch, step=step, recipe=recipe, run=run)
        run.watcher.stepped(step, values | _costs(rates, recipe, begun, loaded))
        if collapse := watch.see(step, values):
            raise _stopped(step, collapse, checkpoint, "--set collapse_steps=0 trains on regardless")
        last = step + 1 == recipe.steps
        if last or ((step + 1) % recipe.save_every == 0 and not watch.suspicious):
            _save(task, optimiser, recipe, checkpoint, step + 1)
            run.watcher.saved(step + 1)


def _learn(
    task: PretextTask, optimiser: torch.optim.Optimizer, batch: Batch, *, step: int, recipe: PretrainRecipe, run: Run
) -> dict[str, float]:
    """One step of optimiser, teacher and centres; returns losses, health numbers and gradient norms."""
    parts, samples = task.trained_parts(), len(next(iter(batch.values())))
    task.begin_step(step, recipe.steps)
    batch = task.augment(batch, generator_at(recipe.seed, _AUGMENT, step, device=run.device))
    torch.manual_seed(derived_seed(recipe.seed, _NETWORK, step))  # stochastic depth: alike in all processes
    autocast = torch.autocast(run.device.type, run.autocast, enabled=run.autocast is not None)
    with autocast, joint_batch(samples, rank=rank(), processes=world()):
        losses = task(batch)
    optimiser.zero_grad(set_to_none=True)
    losses["loss"].backward()
    values = _numbers(losses, clip_gradients(parts, recipe.clip_norm))
    wrong = [f"{name}={value}" for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        reason = f"{', '.join(wrong[:3])}, expected finite numbers"
        raise _stopped(step, reason, run.folder / CHECKPOINT, "a clip_norm of 1 to 3 (--set clip_norm=...) also helps")
    optimiser.step()
    task.after_step(step, recipe.steps)
    return values


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the hardware computes in it (GPU from Ampere on, CPU with AVX512-BF16 or AMX), else None."""
    return torch.bfloat16 if has_fast_bf16(device.type) else None


def clip_gradients(parts: dict[str, nn.Module], clip_norm: float) -> dict[str, Tensor]:
    """Scale the gradients of each part to a norm of at most `clip_norm` (0: any); returns the norms before."""
    return {
        name: torch.nn.utils.clip_grad_norm_(
            [p for p in part.parameters() if p.grad is not None], clip_norm or math.inf
        )
        for name, part in parts.items()
    }


def _move(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def _numbers(losses: dict[str, Tensor], norms: dict[str, Tensor]) -> dict[str, float]:
    """All scalars in one copy from the device, so that a GPU is waited for once per step."""
    scalars = losses | {f"gradient/{name}": norm for name, norm in norms.items()}
    stacked = torch.stack([value.detach().float().reshape(()) for value in scalars.values()])
    return dict(zip(scalars, stacked.tolist(), strict=True))


def _costs(rates: Rates, recipe: PretrainRecipe, begun: float, loaded: float) -> dict[str, float]:
    now = time.perf_counter()
    return {
        "lr": rates.lr,
        "weight_decay": rates.weight_decay,
        "seconds": now - begun,
        "seconds_data": loaded - begun,
        "samples_per_s": recipe.batch_size / (now - begun),
    }


def _stopped(step: int, reason: str, checkpoint: Path, remedy: str) -> ValueError:
    kept = "no checkpoint was written yet"
    if checkpoint.is_file():
        steps_done = load_checkpoint(checkpoint)["steps_done"]
        kept = f"{checkpoint.name} holds the last good state, after {steps_done} steps"
    return ValueError(
        f"pretraining stopped at step {step}: {reason}; {kept}; "
        f"start a new run with a lower base_lr (--set base_lr=...); {remedy}"
    )


def _save(
    task: PretextTask, optimiser: torch.optim.Optimizer, recipe: PretrainRecipe, path: Path, steps_done: int
) -> None:
    state = {"steps_done": steps_done, "task": task.state_dict(), "optimiser": optimiser.state_dict()}
    save_checkpoint(path, state | {"recipe": to_dict(recipe), "config": to_dict(task.config)})


def _resume(task: PretextTask, optimiser: torch.optim.Optimizer, recipe: PretrainRecipe, folder: Path) -> int:
    """Load the state of a run and return the number of steps it has done."""
    path = folder / CHECKPOINT
    state = load_checkpoint(path)
    check_same_settings(state["recipe"] | state["config"], to_dict(recipe) | to_dict(task.config))
    try:
        task.load_state_dict(state["task"])
        optimiser.load_state_dict(state["optimiser"])
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"continuing from {path}: it belongs to another task or encoder; {error}") from error
    return int(state["steps_done"])


def check_same_settings(saved: dict[str, object], now: dict[str, object]) -> None:
    """A continued run keeps its settings, all but how often it saves; otherwise it would not be the same run."""
    changed = [name for name in saved | now if saved.get(name) != now.get(name) and name != "save_every"]
    if changed:
        named = ", ".join(f"{name}={saved.get(name)} became {now.get(name)}" for name in changed)
        raise ValueError(f"continuing a run with other settings: {named}; give the earlier values or a new -run NAME")
