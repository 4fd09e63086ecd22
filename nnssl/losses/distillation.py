"""Self-distillation losses: targets from teacher logits, DINO, iBOT and KoLeo (DINOv2, arXiv:2304.07193; 3DINO).

All functions compute in float32 at least and outside autocast: differences of large exponentials do not survive bf16.
Every function works with and without an initialised process group; "rows" are the samples of one process, `scope` says
whether those of the other processes count too ("global") or not ("process").
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from nnssl.losses.processes import gathered, highest, summed

KOLEO_EPS = 1e-8  # reference: both inside the distance and inside the logarithm


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, temperature: float, *, iterations: int = 3, scope: str = "global") -> Tensor:
    """Teacher targets with equally used prototypes (Caron et al. 2020, arXiv:2006.09882, appendix A).

    Args:
        logits: (rows, K) teacher logits; the rows within `scope` form one problem. 0 rows are allowed.
        temperature: > 0; 0.04 to 0.07 in 3DINO.

    Returns:
        (rows, K) float32 (float64 stays), every row sums to 1. The maximum of each prototype is subtracted before
        exp, which the first normalisation cancels exactly; the reference overflows for logits/temperature > 88.
        A row that lies more than 87 * temperature below the best of *every* prototype vanishes (0) instead of NaN.
    """
    scaled = _full_precision(logits) / temperature
    prototypes = scaled.shape[1]
    rows = summed(scaled.new_full((), len(scaled)), scope)
    peaks = scaled.amax(0) if len(scaled) else scaled.new_full((prototypes,), -torch.inf)
    targets = scaled.sub_(highest(peaks, scope)).exp_()
    tiny = torch.finfo(targets.dtype).tiny
    for _ in range(iterations):
        targets /= (summed(targets.sum(0), scope) * prototypes).clamp_min_(tiny)
        targets /= (targets.sum(1, keepdim=True) * rows).clamp_min_(tiny)
    return targets.mul_(rows)


@torch.no_grad()
def centred_softmax(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """Teacher targets of DINO v1: softmax((logits - centre) / temperature); logits (rows, K), centre (1, K)."""
    return ((_full_precision(logits) - centre) / temperature).softmax(-1)


@torch.no_grad()
def mean_logits(logits: Tensor, scope: str = "global") -> Tensor:
    """(1, K) mean of teacher logits over the rows within `scope`: what a centre moves towards."""
    total = summed(_full_precision(logits).sum(0, keepdim=True), scope)
    rows = summed(total.new_full((), len(logits)), scope)
    return total / rows.clamp_min(1)


@torch.no_grad()
def moved_centre(centre: Tensor, mean: Tensor, momentum: float = 0.9) -> Tensor:
    """The centre of the next step: momentum * centre + (1 - momentum) * mean."""
    return centre * momentum + mean * (1 - momentum)


def cross_entropy(targets: Tensor, logits: Tensor, temperature: float = 0.1) -> Tensor:
    """H = -sum_k targets_k log softmax(logits / temperature)_k per row; both (rows, K), result (rows,)."""
    with torch.autocast(logits.device.type, enabled=False):
        return -(targets * (_full_precision(logits) / temperature).log_softmax(-1)).sum(-1)


def dino_losses(
    targets: Tensor, global_logits: Tensor, local_logits: Tensor, *, temperature: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Class-token cross entropies of 3DINO; their sum is the mean over the 2 + 2L pairs (student view, teacher view).

    The paper writes a sum over the pairs; the reference, followed here, divides by their number.

    Args:
        targets: (2B, K), view-major, halves swapped: row r holds the *other* view of the image of student row r.
        global_logits: (2B, K) student, view-major.
        local_logits: (L * B, K) student, view-major; L may be 0.

    Returns:
        (local part, global part), each already divided by 2 + 2L.
    """
    images = len(targets) // 2
    local_views = len(local_logits) // images
    pairs = 2 + 2 * local_views
    global_part = 2 * cross_entropy(targets, global_logits, temperature).mean() / pairs
    if local_views == 0:
        return torch.zeros_like(global_part), global_part
    both_views = targets[:images] + targets[images:]  # H is linear in the targets: two pairs at once
    entropies = cross_entropy(both_views.repeat(local_views, 1), local_logits, temperature)
    return entropies.sum() / images / pairs, global_part


def ibot_loss(
    targets: Tensor, logits: Tensor, weights: Tensor, *, crops: int | Tensor, temperature: float = 0.1
) -> Tensor:
    """Masked-token cross entropy (Zhou et al. 2022, arXiv:2111.07832): per crop the mean over its masked tokens.

    Args:
        targets, logits: (M, K) at the masked tokens of all crops, same order; M may be 0.
        weights: (M,) 1 / (number of masked tokens of the token's crop).
        crops: the denominator. Reference and 3DINO: all 2B global crops, masked or not. The alternative, the number of
            masked crops (half of them), doubles the loss.
    """
    return (cross_entropy(targets, logits, temperature) * weights).sum() / crops


def koleo_loss(features: Tensor, scope: str = "global") -> Tensor:
    """Spread features evenly: -mean log distance to the nearest neighbour (Sablayrolles et al. 2019, arXiv:1806.03198).

    Args:
        features: (rows, D) of different images, before the head; L2-normalised here. Neighbours are sought within
            `scope` (reference: "process"). Fewer than two rows have no neighbour and give 0.
    """
    features = gathered(features, scope)
    if len(features) < 2:
        return features.sum() * 0.0
    with torch.autocast(features.device.type, enabled=False):
        unit = F.normalize(_full_precision(features), eps=KOLEO_EPS, dim=-1)
        with torch.no_grad():
            similarity = (unit @ unit.T).fill_diagonal_(-torch.inf)
            nearest = similarity.argmax(1)
        distance = F.pairwise_distance(unit, unit[nearest], p=2, eps=KOLEO_EPS)
        return -(distance + KOLEO_EPS).log().mean()


def _full_precision(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
