"""FSDP2: every process holds a part of each tensor of students, teachers and optimiser; files hold whole tensors."""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nnssl.losses.processes import rank, world
from nnssl.pretext.base import PretextTask
from nnssl.pretext.teacher import Teacher
from nnssl.trainers.optimiser import blocks_of


def shard(task: PretextTask) -> None:
    """Spread each network of the task over all processes, block by block.

    A block is gathered for its forward and its backward and let go after each, so that teachers, too, are sharded when
    they follow their students.

    Raises:
        ValueError: this PyTorch has no FSDP2.
    """
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise ValueError(f"-parallel fsdp: PyTorch {torch.__version__} lacks FSDP2; install 2.6 or later") from error
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # no task writes into features
    device = next(task.parameters()).device
    mesh = init_device_mesh(device.type, (world(),))
    for part in _parts(task):
        blocks = blocks_of(name for name, _ in part.named_parameters())
        for module in [*(part.get_submodule(block.removesuffix(".")) for block in blocks), part]:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)


def shard_state(optimiser: torch.optim.Optimizer) -> None:
    """Cut whole tensors, as `load_state_dict` leaves them, as the parameters are cut that they belong to."""
    parameter: Any
    for parameter, state in optimiser.state.items():
        if _is_cut(parameter):
            from torch.distributed.tensor import distribute_tensor

            for name, value in state.items():
                if value.shape == parameter.shape and not _is_cut(value):
                    state[name] = distribute_tensor(value, parameter.device_mesh, parameter.placements)


def whole_on_cpu(state: Any) -> Any:
    """A copy with whole tensors in the first process, for a file; elsewhere None stands for tensors.

    All processes call this: they give their parts.
    """
    if isinstance(state, Tensor):
        gathered = whole(state)
        return gathered.detach().to("cpu", copy=True) if rank() == 0 else None
    if isinstance(state, dict):
        return {key: whole_on_cpu(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(whole_on_cpu(value) for value in state)
    return state


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process holds a part, or a number of all processes, as an ordinary tensor."""
    cut: Any = tensor
    return cut.full_tensor() if _is_cut(tensor) else tensor


def _is_cut(tensor: Tensor) -> bool:
    """Whether it is a DTensor; the class itself costs a second to import."""
    return hasattr(tensor, "full_tensor")


def _parts(task: PretextTask) -> Iterator[nn.Module]:
    yield from task.student.values()
    for child in task.children():
        if isinstance(child, Teacher):
            yield from child.parts.values()
