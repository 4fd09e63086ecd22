"""When a training ends early, and proof that what was frozen stayed as it was: two looks at a run's state."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class EarlyStop(Exception):  # noqa: N818  (like StopIteration: the end, no fault)
    """Raised between two epochs to end a training; the message is the reason."""


def epochs_without_improvement(history: Sequence[float]) -> int:
    """Epochs since the best value (larger is better; NaN never is), 0 for an empty history.

    >>> epochs_without_improvement([0.1, 0.5, 0.5, 0.4])
    2
    """
    best, best_at = -float("inf"), -1
    for epoch, value in enumerate(history):
        if value > best:
            best, best_at = value, epoch
    return len(history) - 1 - best_at


def reason_to_stop(history: Sequence[float], patience: int) -> str | None:
    """Why to stop after this history of the EMA pseudo Dice, or None to go on; patience 0 never stops."""
    waited = epochs_without_improvement(history)
    if not patience or waited < patience:
        return None
    best = max((value for value in history if value == value), default=float("nan"))
    return (
        f"early stopping after {len(history)} epochs: no better EMA pseudo Dice than {best:.4f} "
        f"(epoch {len(history) - 1 - waited}) for {waited} epochs"
    )


def frozen_sha256(module: nn.Module) -> tuple[str, int]:
    """Hash of what is not trained, with names, and how many tensors that are: 0 where all of it is trained.

    Buffers that are saved count where no parameter is trained.
    """
    frozen: dict[str, Tensor] = {name: value for name, value in module.named_parameters() if not value.requires_grad}
    if len(frozen) == len(list(module.parameters())):
        frozen |= module.state_dict()
    digest = hashlib.sha256()
    for name in sorted(frozen):
        digest.update(name.encode())
        digest.update(frozen[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest(), len(frozen)
