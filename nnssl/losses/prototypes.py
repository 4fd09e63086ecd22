"""Cross entropy of a student with its targets over many prototypes, without keeping logits.

65,536 prototypes make one row of logits a quarter of a MiB; a plain loss makes four matrices of such rows on the way
forward and three on the way back. Here a block of rows at a time gets its logits, its loss and its gradients, all in
the forward pass, in one buffer; arithmetic per element runs on pieces that stay in a CPU's cache.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_BYTES = 2**25  # of logits at once: 128 rows of 65,536
PIECE_BYTES = 2**18  # on a CPU: three of them fit into a second-level cache


class Aims(NamedTuple):
    """What the rows of a student are to say."""

    targets: Tensor  # (T, K) of any sum
    chosen: Tensor  # (R,) int64: which target is row r's
    weights: Tensor  # (R,) of row r in the loss


def prototype_loss(rows: Tensor, prototypes: tuple[Tensor, Tensor], *, aims: Aims, temperature: float) -> Tensor:
    """sum_r weight_r H(target_r, softmax(logits_r / temperature)), H(t, s) = -sum_k t_k log s_k.

    logits_rk = gain_k rows_r . direction_k / |direction_k|: weight normalisation, whose gradient (arXiv:1602.07868,
    eq. 3) is taken without a normalised copy. One backward pass only.

    Args:
        rows: (R, D) of length 1, in float32 or float64; R may be 0.
        prototypes: gain (K, 1) and direction (K, D), of the same type.
    """
    with torch.autocast(rows.device.type, enabled=False):
        return _PrototypeLoss.apply(rows, *prototypes, aims, temperature, torch.is_grad_enabled())


def pieces(matrix: Tensor) -> tuple[Tensor, ...]:
    """Views of consecutive rows of (R, K), small enough for a cache; a GPU gets all at once. None for 0 rows."""
    if not len(matrix):
        return ()
    return matrix.split(_rows_of(PIECE_BYTES, matrix.shape[1], matrix)) if matrix.device.type == "cpu" else (matrix,)


class _PrototypeLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, rows: Tensor, gain: Tensor, direction: Tensor, aims: Aims, temperature: float, wanted: bool
    ) -> Tensor:
        length = direction.norm(dim=1)
        scale = gain[:, 0] / length / temperature
        entropies, d_rows = rows.new_empty(len(rows)), torch.zeros_like(rows)
        d_direction, d_scale = torch.zeros_like(direction) if wanted else None, torch.zeros_like(scale)
        block = min(_rows_of(BLOCK_BYTES, len(direction), rows), max(len(rows), 1))
        buffer = rows.new_empty(block, len(direction))  # one for all blocks: fresh memory costs a fault per page
        for first in range(0, len(rows), block):
            part = slice(first, first + block)
            logits = torch.mm(rows[part], direction.T, out=buffer[: len(rows[part])])
            own = Aims(aims.targets, aims.chosen[part], aims.weights[part])
            entropies[part] = _derive(logits, scale, own, d_scale if wanted else None)
            if d_direction is not None:
                torch.mm(logits, direction, out=d_rows[part])
                d_direction.addmm_(logits.T, rows[part])
        if d_direction is not None:
            d_direction.addcmul_(direction, (d_scale * scale / length.square())[:, None], value=-1)
            context.gradients = d_rows, (d_scale / length / temperature)[:, None], d_direction
        return (entropies * aims.weights).sum()

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if not context.gradients:
            raise RuntimeError("second backward pass through prototype_loss: its gradients are gone; call it again")
        found = [each.mul_(gradient) for each in context.gradients]
        context.gradients = ()
        needed = [each if need else None for each, need in zip(found, context.needs_input_grad, strict=False)]
        return (*needed, None, None, None)


def _derive(logits: Tensor, scale: Tensor, aims: Aims, d_scale: Tensor | None) -> Tensor:
    """Cross entropies (R,) of unscaled logits (R, K), which become the derivative of the loss after them.

    The derivative after `scale` (K,) is added to `d_scale`; None: no derivatives.
    """
    entropies, first = [], 0
    for piece in pieces(logits):
        part = slice(first, first := first + len(piece))
        targets, weights = aims.targets[aims.chosen[part]], aims.weights[part, None]
        mass, scaled = targets.sum(1, keepdim=True), piece * scale
        peak = scaled.amax(1, keepdim=True)
        agreement = (targets * scaled).sum(1, keepdim=True)
        student = scaled.sub_(peak).exp_()
        total = student.sum(1, keepdim=True)
        entropies.append((mass * (peak + total.log()) - agreement)[:, 0])
        if d_scale is not None:
            derivative = student.mul_(weights * mass / total).sub_(targets.mul_(weights))
            d_scale += (derivative * piece).sum(0)
            torch.mul(derivative, scale, out=piece)
    return torch.cat(entropies)


def _rows_of(limit: int, width: int, like: Tensor) -> int:
    """How many rows of `width` numbers take `limit` bytes."""
    return max(1, limit // (width * like.element_size()))
