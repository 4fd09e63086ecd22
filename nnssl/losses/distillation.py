"""Self-distillation: targets from teacher logits, what they weigh in DINO and iBOT, KoLeo (arXiv:2304.07193; 3DINO).

All functions compute in float32 at least and outside autocast: differences of large exponentials do not survive bf16.
Every function works with and without an initialised process group; "rows" are the samples of one process, `scope` says
whether those of the other processes count too ("global") or not ("process").
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from nnssl.losses.processes import gathered, highest, summed
from nnssl.losses.prototypes import Aims, pieces

KOLEO_EPS = 1e-8  # reference: both inside the distance and inside the logarithm


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, temperature: float, *, iterations: int = 3, scope: str = "global") -> Tensor:
    """Teacher targets with equally used prototypes (Caron et al. 2020, arXiv:2006.09882, appendix A).

    Args:
        logits: (rows, K) teacher logits in float32 or float64, overwritten: a second matrix would double the memory of
            65,536 prototypes. The rows within `scope` form one problem. 0 rows are allowed.
        temperature: > 0; 0.04 to 0.07 in 3DINO.

    Returns:
        (rows, K) in the memory of the logits; every row sums to 1. The maximum of each prototype is subtracted before
        exp, which the first normalisation cancels exactly; the reference overflows for logits/temperature > 88.
        A row that lies more than 87 * temperature below the best of *every* prototype vanishes (0) instead of NaN.
    """
    targets = logits.div_(temperature)
    tiny, prototypes = torch.finfo(targets.dtype).tiny, targets.shape[1]
    rows = summed(targets.new_full((), len(targets)), scope)
    peaks = highest(targets.amax(0) if len(targets) else targets.new_full((prototypes,), -torch.inf), scope)
    uses = torch.zeros_like(peaks)  # of each prototype, summed over rows
    for piece in pieces(targets):
        uses += piece.sub_(peaks).exp_().sum(0)
    for _ in range(iterations):
        shares, uses = (summed(uses, scope) * prototypes).clamp_min_(tiny), torch.zeros_like(uses)
        for piece in pieces(targets):
            piece /= shares
            piece /= (piece.sum(1, keepdim=True) * rows).clamp_min_(tiny)
            uses += piece.sum(0)
    return targets.mul_(rows)


@torch.no_grad()
def centred_softmax(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """Teacher targets of DINO v1: softmax((logits - centre) / temperature); logits (rows, K), centre (1, K).

    Float32 or float64 logits, overwritten as in `sinkhorn_knopp`.
    """
    for piece in pieces(logits):
        piece.copy_(piece.sub_(centre).div_(temperature).softmax(-1))
    return logits


@torch.no_grad()
def mean_logits(total: Tensor, rows: int, scope: str = "global") -> Tensor:
    """(1, K) mean of teacher logits over the rows within `scope`: what a centre moves towards.

    Args:
        total: (1, K) sum of the logits of this process's `rows` rows.
    """
    return summed(total.clone(), scope) / summed(total.new_full((), rows), scope).clamp_min(1)


@torch.no_grad()
def moved_centre(centre: Tensor, mean: Tensor, momentum: float = 0.9) -> Tensor:
    """The centre of the next step: momentum * centre + (1 - momentum) * mean."""
    return centre * momentum + mean * (1 - momentum)


def dino_aims(targets: Tensor, local_views: int = 0) -> Aims:
    """Class tokens: `prototype_loss` is then the mean over the 2 + 2L pairs (student view, other teacher view).

    The paper writes a sum over the pairs; the reference, followed here, divides by their number.

    Args:
        targets: (2B, K), view-major, halves swapped: row r holds the *other* view of the image of student row r.
        local_views: L. The student's rows are its 2B global views, then its L * B local ones, all view-major.
    """
    images = len(targets) // 2
    chosen = torch.arange(2 * images, device=targets.device)
    if local_views:
        both_views = targets[:images] + targets[images:]  # H is linear in the targets: two pairs at once
        chosen = torch.cat([chosen, chosen[:images].add(2 * images).repeat(local_views)])
        targets = torch.cat([targets, both_views])
    return Aims(targets, chosen, targets.new_full((len(chosen),), 1 / (images * (2 + 2 * local_views))))


def ibot_aims(targets: Tensor, weights: Tensor, crops: int | Tensor) -> Aims:
    """Hidden tokens (Zhou et al. 2022, arXiv:2111.07832): per crop the mean over its hidden tokens.

    Args:
        targets: (M, K) of the hidden tokens of all crops; M may be 0.
        weights: (M,) 1 / (number of hidden tokens of the token's crop).
        crops: the denominator. Reference and 3DINO: all 2B global crops, masked or not. The alternative, the number of
            masked crops (half of them), doubles the loss.
    """
    return Aims(targets, torch.arange(len(targets), device=targets.device), weights.to(targets.dtype) / crops)


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
