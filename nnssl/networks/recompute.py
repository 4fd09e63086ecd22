"""Less memory for a little time: a part of a network whose activations are not kept but computed again."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(part: nn.Module, *inputs: Any) -> Any:
    """`part(*inputs)`; of it only the inputs are kept, the backward pass computes the rest again.

    The same numbers, random ones included (Chen et al. 2016, arXiv:1604.06174). A part with batch normalisation keeps
    its activations: a second pass would move its running statistics twice.
    """
    if not torch.is_grad_enabled() or any(isinstance(module, _BatchNorm) for module in part.modules()):
        return part(*inputs)
    if any(isinstance(one, torch.Tensor) and one.is_meta for one in inputs):  # shapes only
        return part(*inputs)
    return checkpoint(part, *inputs, use_reentrant=False)
