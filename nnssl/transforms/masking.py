"""Which tokens are hidden: stratified shares, exact counts, drawn from the generator alone."""

from typing import NamedTuple

import torch
from torch import Tensor


class TokenMasks(NamedTuple):
    """Hidden tokens of a batch of crops; `position` and `weight` follow the raster order of `mask`."""

    mask: Tensor  # (crops, tokens) bool, True = hidden
    position: Tensor  # (M,) int64 positions of the hidden tokens in the flattened mask
    weight: Tensor  # (M,) float32, 1 / (hidden tokens of the same crop)


def stratified_masks(
    crops: int,
    tokens: int,
    generator: torch.Generator,
    *,
    probability: float = 0.5,
    shares: tuple[float, float] = (0.2, 0.75),
) -> TokenMasks:
    """Hide tokens in int(crops * probability) of the crops, uniformly without replacement (3DINO; no blocks).

    The range of shares is cut into as many equal strata as there are masked crops; the i-th masked crop hides
    int(tokens * share) tokens with its share uniform in stratum i. Which crops are masked is random.
    """
    masked = int(crops * probability)
    hidden = torch.zeros(crops, dtype=torch.int64)
    drawn = torch.rand(masked, generator=generator, device=generator.device, dtype=torch.float64).cpu()
    share = shares[0] + (shares[1] - shares[0]) * (torch.arange(masked) + drawn) / max(masked, 1)
    hidden[:masked] = (tokens * share).to(torch.int64)
    hidden = hidden[torch.randperm(crops, generator=generator, device=generator.device).cpu()]
    noise = torch.rand(crops, tokens, generator=generator, device=generator.device, dtype=torch.float64).cpu()
    mask = noise.argsort(dim=1).argsort(dim=1) < hidden[:, None]
    return TokenMasks(mask, mask.flatten().nonzero()[:, 0], (1 / hidden.clamp(min=1)).repeat_interleave(hidden))
