"""InfoNCE between two views of each volume (SimCLR, arXiv:2002.05709)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nnssl.losses.processes import gathered


def info_nce(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Normalised-temperature cross entropy of two views, symmetric over all 2B rows (NT-Xent, equation 1).

    A row is compared with the other 2B - 1 rows by cosine similarity; its positive stays in the denominator.

    Args:
        first, second: (B, D) projections; row i of both comes from the same volume.
        temperature: > 0; 0.5 in SwinUNETR.

    Returns:
        Scalar, float32 (float64 stays), computed outside autocast; ln(2B - 1) for uninformative projections.
    """
    with torch.autocast(first.device.type, enabled=False):
        rows = torch.cat([first, second])
        unit = F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=1)
        logits = (unit @ unit.T / temperature).fill_diagonal_(-torch.inf)
        positive = torch.arange(len(rows), device=rows.device).roll(len(first))
        return F.cross_entropy(logits, positive)


def two_view_info_nce(projections: Tensor, temperature: float, scope: str = "global") -> Tensor:
    """`info_nce` of view-major projections (2B, D).

    Args:
        scope: "global": negatives come from the batches of all processes, so that the number of devices does not change
            the objective. "process": from its own only, as the SwinUNETR code.
    """
    first, second = (gathered(view, scope) for view in projections.chunk(2))
    return info_nce(first, second, temperature)
