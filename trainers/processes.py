"""The processes of a run: they join through torchrun's environment and share parameters by DDP or FSDP2."""

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnssl.losses.processes import world
from nnssl.pretext.base import PretextTask
from nnssl.trainers.sharding import shard

PARALLEL = ("ddp", "fsdp")
RESTARTS = "NNSSL_RESTARTS"  # set in jobs that nnssl_pretrain --slurm made: how often they were queued again
REQUEUE = 75  # exit code of a run that was asked to stop and is to be continued: EX_TEMPFAIL of sysexits.h


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Inside, the processes that torchrun (or submitit) started are one group: nccl on GPUs, gloo on CPUs.

    Yields:
        The device of this process: on a node with several GPUs the one of its local rank.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def local_processes() -> int:
    """How many processes of this run share the machine and its cores."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def was_restarted() -> bool:
    """Whether SLURM requeued this job or torchrun started its processes anew: then the run goes on where it was."""
    counts = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT", RESTARTS)
    return any(int(os.environ.get(name, "0")) > 0 for name in counts)


def check_divisible(batch_size: int, accumulate: int) -> None:
    """Raise a ValueError unless the global batch splits evenly over processes and micro-batches."""
    parts = world() * accumulate
    if accumulate < 1 or batch_size % parts:
        fitting = max(1, round(batch_size / parts)) * parts
        raise ValueError(
            f"batch_size={batch_size} over {world()} process(es) with -accumulate {accumulate}: it must be a multiple "
            f"of {parts}; take --set batch_size={fitting} or other numbers of processes and micro-batches"
        )


def shared_over_processes(task: PretextTask, parallel: str) -> nn.Module:
    """What to call instead of `task` so that gradients are averaged over the processes; the task itself where alone.

    DDP looks for parameters without gradient in every step: which ones have none may depend on the batch. It also
    keeps its buckets then, so that sums are made in the same order after a restart.
    """
    if world() == 1:
        return task
    if parallel == "fsdp":
        shard(task)
        return task
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view")  # 1x1x1 convolutions; costs a copy
    return DistributedDataParallel(task, find_unused_parameters=True, gradient_as_bucket_view=True)


def gradients_stay(network: nn.Module, stay: bool) -> AbstractContextManager[None]:
    """Inside, DDP leaves gradients where they are, for the micro-batches before the last; FSDP2 always adds them up."""
    return network.no_sync() if stay and isinstance(network, DistributedDataParallel) else nullcontext()


def told_by_first(text: str) -> str:
    """What the first process says, in all of them."""
    said = [text]
    if world() > 1:
        dist.broadcast_object_list(said, src=0)
    return said[0]
