"""One training step: augment, forward and backward per micro-batch, clip, optimiser, teachers; on all processes."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnssl.data.seeds import derived_seed, generator_at
from nnssl.layers.joint_batch import joint_batch
from nnssl.layers.recomputation import recompute
from nnssl.losses.processes import rank, summed, world
from nnssl.pretext.base import PretextTask
from nnssl.recipe import PretrainRecipe
from nnssl.trainers.optimiser import Rates, blocks_of, build_optimiser, set_rates
from nnssl.trainers.processes import gradients_stay, shared_over_processes
from nnssl.trainers.sharding import shard_state, whole, whole_on_cpu

_AUGMENT, _NETWORK = 2, 3  # what a derived seed is for; the data stream uses 0 and 1

Batch = dict[str, Tensor]


class Learner:
    """A task, its optimiser, and the processes that share them.

    Args:
        autocast: type of the forward passes; None: float32.
        parallel: "ddp" or "fsdp"; matters with several processes.
        accumulate: micro-batches per step and process.
    """

    def __init__(
        self,
        task: PretextTask,
        recipe: PretrainRecipe,
        *,
        autocast: torch.dtype | None = None,
        parallel: str = "ddp",
        accumulate: int = 1,
    ) -> None:
        self.task, self.recipe, self.autocast, self.accumulate = task, recipe, autocast, accumulate
        self.device = next(task.parameters()).device
        if recipe.recompute:
            for part in task.trained_parts().values():
                blocks = blocks_of(name for name, _ in part.named_parameters())
                recompute(part, [block.removesuffix(".") for block in blocks])
        self.network = shared_over_processes(task, parallel)
        self.optimiser = build_optimiser(task.trained_parts(), recipe)

    def learn(self, step: int, batch: Batch, rates: Rates) -> dict[str, float]:
        """One step; nothing moves where a loss or gradient is not finite.

        Args:
            batch: this process's share of the collated samples of the step.

        Returns:
            Losses, health numbers and gradient norms before clipping: means over all processes and micro-batches.
        """
        task, recipe, samples = self.task, self.recipe, len(next(iter(batch.values())))
        set_rates(self.optimiser, rates)
        task.begin_step(step, recipe.steps)
        batch = task.augment(batch, generator_at(recipe.seed, _AUGMENT, step, device=self.device))
        self.optimiser.zero_grad(set_to_none=True)
        parts = micro_batches(batch, samples, self.accumulate)
        losses = [self._backward(own, step=step, part=part, samples=samples) for part, own in enumerate(parts)]
        values = _numbers(losses, clip_gradients(task.trained_parts(), recipe.clip_norm))
        if not not_finite(values):
            self.optimiser.step()
            task.after_step(step, recipe.steps)
        return values

    def _backward(self, batch: Batch, *, step: int, part: int, samples: int) -> dict[str, Tensor]:
        """Add the gradients of one micro-batch; after the last one they are averaged over the processes."""
        parts = self.accumulate
        torch.manual_seed(derived_seed(self.recipe.seed, _NETWORK, step))  # stochastic depth: alike in all processes
        autocast = torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None)
        share = joint_batch(samples // parts, rank=rank() * parts + part, processes=world() * parts)
        with gradients_stay(self.network, stay=part + 1 < parts):
            with autocast, share:
                losses = self.network(batch)
            (losses["loss"] / parts).backward()
        return {name: value.detach().float().reshape(()) for name, value in losses.items()}

    def state(self) -> dict[str, Any]:
        """Whole tensors of task and optimiser on the CPU, in the first process; all processes call this."""
        return whole_on_cpu({"task": self.task.state_dict(), "optimiser": self.optimiser.state_dict()})

    def load_optimiser(self, state: dict[str, Any]) -> None:
        """Continue with the optimiser's part of `state`; the task's is loaded before its parameters are shared."""
        self.optimiser.load_state_dict(state)
        shard_state(self.optimiser)


def micro_batches(batch: Batch, samples: int, parts: int) -> list[Batch]:
    """View-major stacks (V * samples, ...) -> `parts` batches, each with all views of its part of the samples."""
    if parts == 1:
        return [batch]
    split = {name: stack.unflatten(0, (-1, parts, samples // parts)) for name, stack in batch.items()}
    return [{name: stack[:, part].flatten(0, 1) for name, stack in split.items()} for part in range(parts)]


def clip_gradients(parts: dict[str, nn.Module], clip_norm: float) -> dict[str, Tensor]:
    """Scale the gradients of each part to a norm of at most `clip_norm` (0: any); returns the norms before."""
    return {
        name: whole(
            torch.nn.utils.clip_grad_norm_([p for p in part.parameters() if p.grad is not None], clip_norm or math.inf)
        )
        for name, part in parts.items()
    }


def not_finite(values: dict[str, float]) -> str:
    """What is NaN or infinite; empty where all is well."""
    wrong = [f"{name}={value}" for name, value in values.items() if not math.isfinite(value)]
    return f"{', '.join(wrong[:3])}, expected finite numbers" if wrong else ""


def _numbers(losses: Sequence[dict[str, Tensor]], norms: dict[str, Tensor]) -> dict[str, float]:
    """All scalars in one copy from the device, so that a GPU is waited for once per step."""
    means = summed(torch.stack([torch.stack(list(part.values())) for part in losses]).mean(0)) / world()
    found = torch.cat([means, torch.stack([norm.detach().float().reshape(()) for norm in norms.values()])])
    return dict(zip([*losses[0], *(f"gradient/{name}" for name in norms)], found.tolist(), strict=True))
