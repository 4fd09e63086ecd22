"""Sums, rows and random draws that span the processes of a run; without a process group they are the process's own.

Gradients follow the convention of data-parallel training: every process computes the mean over its own rows, and the
trainer averages the gradients of all processes. All processes hold equally many rows.
"""

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

SCOPES = ("global", "process")  # what a batch-coupled loss sees: the batch of all processes, or its own


def world(scope: str = "global") -> int:
    """Number of processes that `scope` spans."""
    return dist.get_world_size() if scope == "global" and dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world() > 1 else 0


def check_scope(task: str, scope: str) -> None:
    """Raise a ValueError that lists the scopes."""
    if scope not in SCOPES:
        raise ValueError(f"{task} setting scope={scope!r}: allowed are {', '.join(SCOPES)}")


def summed(tensor: Tensor, scope: str = "global") -> Tensor:
    """Sum over processes, in place, without gradient."""
    if world(scope) > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
    return tensor


def highest(tensor: Tensor, scope: str = "global") -> Tensor:
    """Maximum over processes, in place, without gradient."""
    if world(scope) > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def gathered(rows: Tensor, scope: str = "global") -> Tensor:
    """(rows, ...) of every process in the order of the processes, with gradients that flow back to their owners."""
    return _Gathered.apply(rows) if world(scope) > 1 else rows


def own_rows(joint: Tensor) -> Tensor:
    """The rows of this process of a tensor that was drawn for the samples of all processes."""
    return joint.chunk(world())[rank()]


def own_generator(generator: torch.Generator) -> torch.Generator:
    """A generator of this process, seeded by one that all processes share; a process alone keeps the given one."""
    if world() == 1:
        return generator
    seeds = torch.randint(2**62, (world(),), generator=generator, device=generator.device)
    return torch.Generator(generator.device).manual_seed(int(seeds[rank()]))


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.contiguous().clone()
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
        return total.chunk(world())[rank()]
