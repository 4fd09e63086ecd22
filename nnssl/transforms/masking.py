"""Which tokens are hidden: exact counts, drawn from the generator alone."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class HiddenTokens(NamedTuple):
    """The hidden tokens of a mask in its raster order."""

    position: Tensor  # (M,) int64 in the flattened mask
    weight: Tensor  # (M,) float32, 1 / (hidden tokens of the same crop)


def random_mask(tokens: int, ratio: float, generator: torch.Generator) -> Tensor:
    """Hide ceil(ratio * tokens) of the tokens of one crop, uniformly without replacement (SMIT, SimMIM).

    Returns:
        (tokens,) bool, True = hidden. 0.75 of 216 tokens are 162 (SMIT's code: 0.7, 152).
    """
    hidden = math.ceil(ratio * tokens - 1e-9)  # 0.1 * 30 is a hair above 3
    return _random_masks(torch.tensor([hidden]), tokens, generator)[0]


def stratified_masks(
    crops: int,
    tokens: int,
    generator: torch.Generator,
    *,
    probability: float = 0.5,
    shares: tuple[float, float] = (0.2, 0.75),
) -> Tensor:
    """Hide tokens in int(crops * probability) of the crops, uniformly without replacement (3DINO; no blocks).

    The range of shares is cut into as many equal strata as there are masked crops; the i-th masked crop hides
    int(tokens * share) tokens with its share uniform in stratum i. Which crops are masked is random.

    Returns:
        (crops, tokens) bool, True = hidden.
    """
    masked = int(crops * probability)
    hidden = torch.zeros(crops, dtype=torch.int64)
    drawn = torch.rand(masked, generator=generator, device=generator.device, dtype=torch.float64).cpu()
    share = shares[0] + (shares[1] - shares[0]) * (torch.arange(masked) + drawn) / max(masked, 1)
    hidden[:masked] = (tokens * share).to(torch.int64)
    hidden = hidden[torch.randperm(crops, generator=generator, device=generator.device).cpu()]
    return _random_masks(hidden, tokens, generator)


def hidden_tokens(mask: Tensor) -> HiddenTokens:
    """Where the True entries of a mask (crops, tokens) are and what each weighs; crops without any are allowed."""
    counts = mask.sum(1)
    position = mask.flatten().nonzero()[:, 0]
    return HiddenTokens(position, (1 / counts.clamp(min=1))[position // mask.shape[1]])


def hidden_voxels(mask: Tensor, grid: tuple[int, int, int], stride: int) -> Tensor:
    """(B, N) bool over the token grid -> (B, 1, X, Y, Z) bool over voxels, `stride` voxels per token and side."""
    voxels = mask.view(-1, 1, *grid)
    for axis in (2, 3, 4):
        voxels = voxels.repeat_interleave(stride, axis)
    return voxels


def _random_masks(hidden: Tensor, tokens: int, generator: torch.Generator) -> Tensor:
    """(crops, tokens) with hidden[i] True entries in row i."""
    noise = torch.rand(len(hidden), tokens, generator=generator, device=generator.device, dtype=torch.float64).cpu()
    return noise.argsort(dim=1).argsort(dim=1) < hidden[:, None]
