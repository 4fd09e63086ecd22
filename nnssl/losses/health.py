"""Numbers that show whether a representation is alive: spread and rank of features, entropy and use of targets."""

import torch
from torch import Tensor
from torch.nn import functional as F

HEALTH = ("feature_std", "effective_rank", "teacher_entropy", "prototype_usage")
ROWS = 128  # of the singular value decomposition: 2 to 8 ms of a CPU; 256 take 30 to 50


@torch.no_grad()
def feature_health(features: Tensor) -> dict[str, Tensor]:
    """What every task logs of the features (rows, D) that it trains: {"feature_std", "effective_rank"}."""
    return {"feature_std": feature_spread(features), "effective_rank": effective_rank(features)}


@torch.no_grad()
def map_health(feature_map: Tensor) -> dict[str, Tensor]:
    """`feature_health` of the cells of a map (B, C, X, Y, Z): for tasks that train cells and no token of the image."""
    return feature_health(feature_map.movedim(1, -1).flatten(0, -2))


@torch.no_grad()
def target_health(targets: Tensor) -> dict[str, Tensor]:
    """What every task with a teacher logs of its targets (rows, K): {"teacher_entropy", "prototype_usage"}."""
    return {"teacher_entropy": target_entropy(targets), "prototype_usage": prototype_usage(targets)}


@torch.no_grad()
def feature_spread(features: Tensor) -> Tensor:
    """Standard deviation of L2-normalised features (rows, D) times sqrt(D): about 1 = isotropic, 0 = collapse."""
    unit = F.normalize(_full_precision(features), dim=-1)
    return unit.var(0, unbiased=False).sum().sqrt()


@torch.no_grad()
def effective_rank(features: Tensor) -> Tensor:
    """exp of the entropy of the normalised singular values of centred features (Roy & Vetterli 2007, eq. 1-3).

    Args:
        features: (rows, D); of more than 128 rows 128 are drawn, always the same (every k-th could be those on one face
            of a grid).

    Returns:
        Between 1 (all differences point one way, or there are none) and min(rows - 1, D); NaN where a feature is.
    """
    rows = _full_precision(features if len(features) <= ROWS else features[_sampled(len(features))])
    centred = rows - rows.mean(0)
    with torch.autocast(features.device.type, enabled=False):
        values = torch.linalg.svdvals(centred.nan_to_num(0.0, 0.0, 0.0))
    share = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    rank = torch.special.entr(share).sum().exp()
    return torch.where(centred.isfinite().all(), rank, rank.new_tensor(torch.nan))


@torch.no_grad()
def target_entropy(targets: Tensor) -> Tensor:
    """Mean entropy of target rows (rows, K) as a share of ln K: 0 = one-hot, 1 = uninformative."""
    return torch.special.entr(targets).sum(-1).mean() / torch.tensor(targets.shape[-1]).log()


@torch.no_grad()
def prototype_usage(targets: Tensor) -> Tensor:
    """Distinct winning prototypes / the most that the rows could have; 1 = every row its own, towards 0 = collapse."""
    rows, prototypes = targets.shape
    won = torch.zeros(prototypes, device=targets.device).scatter_(0, targets.argmax(-1), 1.0)
    return won.sum() / min(rows, prototypes)


def _sampled(rows: int) -> Tensor:
    """(ROWS,) positions among `rows` on the CPU, from a generator of their own."""
    return torch.randint(rows, (ROWS,), generator=torch.Generator().manual_seed(rows))


def _full_precision(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
