"""Blocks that keep their input alone and run again in the backward pass (Chen et al. 2016, arXiv:1604.06174)."""

from collections.abc import Callable, Iterable
from contextvars import copy_context
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute(network: nn.Module, blocks: Iterable[str]) -> None:
    """From now on the named submodules do so; state dicts and results stay as they are, random draws included."""
    for name in blocks:
        block = network.get_submodule(name)
        block.forward = _recomputed(block.forward)  # type: ignore[method-assign]


def _recomputed(run: Callable[..., Any]) -> Callable[..., Any]:
    def call(*given: Any) -> Any:
        if not torch.is_grad_enabled():
            return run(*given)
        around = copy_context()  # of `joint_batch`, which has ended when the backward pass comes
        return checkpoint(lambda *inputs: around.run(run, *inputs), *given, use_reentrant=False)

    return call
