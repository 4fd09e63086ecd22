"""Binary cross entropy + Dice of one structure (SMIT benchmark: tumours; several classes use nnU-Net's CE + Dice)."""

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTH = 1e-5  # nnU-Net's; SMIT's code: squared denominators, 0 above and 1e-6 below


def bce_dice(logits: Tensor, target: Tensor, ignore_label: int | None = None) -> Tensor:
    """Binary cross entropy minus soft Dice, both of the same probability.

    Args:
        logits: (B, 1, X, Y, Z), or (B, 2, X, Y, Z) for background and structure: their difference is the logit of the
            structure, so that argmax predicts what the sigmoid says. With two logits the first term equals their
            cross entropy.
        target: (B, 1, X, Y, Z) labels 0 and 1; with one logit and an ignore label (B, 2, X, Y, Z), the structure and
            what to ignore, as nnU-Net makes them for regions.
        ignore_label: voxels that count in neither term.

    Returns:
        Scalar above -1; ln 2 minus the Dice of a grey prediction for uninformative logits.
    """
    if logits.shape[1] not in (1, 2):
        raise ValueError(f"binary cross entropy got {logits.shape[1]} logits; expected 1, or 2 with the background")
    structure, counted = _structure_and_counted(target, ignore_label)
    logit = (logits[:, -1:] - logits[:, :1] if logits.shape[1] == 2 else logits).float()
    entropy = F.binary_cross_entropy_with_logits(logit, structure, weight=counted, reduction="sum")
    return entropy / counted.sum().clamp_min(1) - soft_dice(logit.sigmoid() * counted, structure * counted)


def soft_dice(probability: Tensor, target: Tensor) -> Tensor:
    """Mean over volumes and channels of 2 |P T| / (|P| + |T|), 1 where both are empty; (B, C, X, Y, Z) in [0, 1]."""
    axes = tuple(range(2, probability.ndim))
    overlap = (probability * target).sum(axes)
    return ((2 * overlap + SMOOTH) / (probability.sum(axes) + target.sum(axes) + SMOOTH)).mean()


def _structure_and_counted(target: Tensor, ignore_label: int | None) -> tuple[Tensor, Tensor]:
    """(structure, voxels that count), both (B, 1, X, Y, Z) of 0 and 1."""
    structure = target[:, :1]
    if ignore_label is None:
        return (structure > 0).float(), torch.ones_like(structure, dtype=torch.float32)
    ignored = target[:, 1:2] > 0 if target.shape[1] == 2 else structure == ignore_label
    return ((structure > 0) & ~ignored).float(), (~ignored).float()
