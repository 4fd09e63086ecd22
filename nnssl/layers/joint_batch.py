"""Random draws for a batch that several processes share: drawn for all its rows, of which a process uses its own.

The global generator is in the same state in all processes (the pretraining loop seeds it at every step), so they draw
alike, and two processes drop what one would drop on the joint batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor


class Share(NamedTuple):
    """This process's part of a batch: samples rank * samples to (rank + 1) * samples - 1."""

    samples: int = 1
    rank: int = 0
    processes: int = 1


ALONE = Share()  # one process, however many samples
_share: ContextVar[Share] = ContextVar("share", default=ALONE)


@contextmanager
def joint_batch(samples: int, *, rank: int, processes: int) -> Iterator[None]:
    """Inside, this process holds `samples` samples of a batch of processes * samples; elsewhere it holds all of them.

    Layers then see stacks (V * samples, ...), view-major: the first views of all samples, then the second views, ...
    V may differ from stack to stack.
    """
    token = _share.set(Share(samples, rank, processes))
    try:
        yield
    finally:
        _share.reset(token)


def random_rows(rows: int, share: float) -> tuple[Tensor, float]:
    """A random part of the joint batch: max(int(joint rows * share), 1) rows, without replacement (DINOv2).

    Returns:
        Positions (m,) int64 on the CPU, ascending, of those among the `rows` rows of this process; m varies between
        processes and may be 0. And joint rows / drawn rows, which keeps the expectation of a sum.
    """
    joint = rows * _share.get().processes
    drawn = max(int(joint * share), 1)
    return _own(torch.randperm(joint, device="cpu") < drawn).nonzero()[:, 0], joint / drawn


def kept_rows(rows: int, share: float) -> Tensor:
    """(rows,) bool on the CPU: each row of the joint batch is True with probability `share` (Huang et al. 2016)."""
    return _own(torch.rand(rows * _share.get().processes, device="cpu") < share)


def _own(joint: Tensor) -> Tensor:
    """The entries of this process, of (V * processes * samples,) for the joint view-major stack."""
    samples, rank, processes = _share.get()
    return joint if processes == 1 else joint.unflatten(0, (-1, processes, samples))[:, rank].flatten()
