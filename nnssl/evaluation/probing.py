"""Voxel-wise linear probe: what a linear map of frozen features can tell about labels.

The features stay as they are (standardised with the training cases' mean and deviation), one 1x1x1 convolution per map
is trained, and logits are up-sampled and summed, so that nothing but a linear function of features is learnt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnssl.encoders.base import Encoder, TokenEncoder, to_encoder_range
from nnssl.evaluation.metrics import dice

LAYERS = 4  # of a plain transformer: the last four, as in DINOv2's and 3DINO's linear evaluation
LEAST_DEVIATION = 1e-4


@dataclass(frozen=True)
class ProbeSettings:
    """Optimisation of the probe; the same for every encoder that is compared."""

    steps: int = 300
    batch_size: int = 4
    lr: float = 1e-2  # AdamW, cosine to 0
    weight_decay: float = 1e-2


@dataclass(frozen=True)
class ProbeCase:
    """Frozen features of one scan and its labels."""

    maps: list[Tensor]  # (C, X/s, Y/s, Z/s), float16
    labels: Tensor  # (X, Y, Z) int64; padded voxels are 0
    shape: tuple[int, int, int]  # voxels of the scan itself


@torch.no_grad()
def frozen_case(encoder: Encoder, volume: Tensor, labels: Tensor) -> ProbeCase:
    """Features of a whole scan, padded at the end with background to a multiple that the encoder takes.

    Args:
        volume: (1, X, Y, Z) stored intensities in [0, 1].
        labels: (X, Y, Z) integers, 0 = background.
    """
    x, y, z = labels.shape
    multiple = encoder.spec.crop_multiple
    padding = [end for side in (z, y, x) for end in (0, -side % multiple)]
    scaled = to_encoder_range(F.pad(volume, padding).clamp(0, 1), encoder.spec.intensity.encoder_range)
    maps = frozen_maps(encoder, scaled[None])
    return ProbeCase([one[0].half() for one in maps], F.pad(labels.long(), padding), (x, y, z))


def frozen_maps(encoder: Encoder, volume: Tensor) -> list[Tensor]:
    """The last four layers of a plain transformer, or all maps of a pyramid, of (B, C, X, Y, Z)."""
    encoder.eval()
    if isinstance(encoder, TokenEncoder):
        return encoder.layer_maps(volume, range(encoder.spec.depth - LAYERS, encoder.spec.depth))
    return encoder(volume).maps


class LinearProbe(nn.Module):
    """Standardised maps to the sum of their linear logits at full resolution."""

    def __init__(self, cases: Sequence[ProbeCase], classes: int) -> None:
        super().__init__()
        self.moments = [_moments([case.maps[level] for case in cases]) for level in range(len(cases[0].maps))]
        self.weights = nn.ModuleList(nn.Conv3d(len(mean), classes, 1) for mean, _ in self.moments)
        for layer in self.weights:
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, case: ProbeCase) -> Tensor:
        """Logits (1, classes, X, Y, Z) of one case."""
        size = tuple(case.labels.shape)
        total = torch.zeros(())
        for one, (mean, deviation), layer in zip(case.maps, self.moments, self.weights, strict=True):
            standard = (one.float() - mean[:, None, None, None]) / deviation[:, None, None, None]
            total = total + F.interpolate(layer(standard[None]), size=size, mode="trilinear", align_corners=False)
        return total


def train_probe(
    cases: Sequence[ProbeCase], classes: int, *, seed: int, settings: ProbeSettings | None = None
) -> LinearProbe:
    """A probe trained on some cases with cross entropy and soft Dice; the seed orders the cases."""
    settings = settings or ProbeSettings()
    probe, generator = LinearProbe(cases, classes), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(probe.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps)
    for _ in range(settings.steps):
        drawn = torch.randperm(len(cases), generator=generator)[: settings.batch_size].tolist()
        loss = torch.stack([_loss(probe(cases[index]), cases[index].labels) for index in drawn]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return probe


@torch.no_grad()
def probe_scores(probe: LinearProbe, cases: Sequence[ProbeCase], classes: int) -> np.ndarray:
    """Dice (cases, classes - 1) of the foreground labels inside the scans; NaN where a label is in neither map."""
    table = np.full((len(cases), classes - 1), np.nan)
    for row, case in enumerate(cases):
        inside = tuple(slice(0, side) for side in case.shape)
        found, truth = probe(case)[0].argmax(0)[inside].numpy(), case.labels[inside].numpy()
        table[row] = [dice(truth == label, found == label) for label in range(1, classes)]
    return table


def _moments(maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel over all cells of all cases."""
    cells = torch.cat([one.float().flatten(1) for one in maps], dim=1)
    return cells.mean(1), cells.std(1).clamp(min=LEAST_DEVIATION)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    shares = logits.softmax(1)[0, 1:].flatten(1)
    truth = F.one_hot(labels, logits.shape[1]).movedim(-1, 0)[1:].flatten(1).float()
    overlap = (2 * (shares * truth).sum(1) + 1) / (shares.sum(1) + truth.sum(1) + 1)
    return F.cross_entropy(logits, labels[None]) + 1 - overlap.mean()
