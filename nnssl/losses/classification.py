"""Cross entropy and accuracy of predicted classes."""

import torch
from torch import Tensor
from torch.nn import functional as F


def class_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of logits (B, classes) and labels (B,), in float32 at least and outside autocast."""
    with torch.autocast(logits.device.type, enabled=False):
        return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels)


@torch.no_grad()
def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of rows whose highest logit is the label's; 1 / classes is chance."""
    return (logits.argmax(1) == labels).float().mean()
