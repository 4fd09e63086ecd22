"""Voxel-wise linear probe: what a linear map of frozen features can tell about labels.

The features stay as they are (standardised with the training cases' mean and deviation), one 1x1x1 convolution per map
is trained, and logits are up-sampled and summed, so that nothing but a linear function of features is learnt.
Up-sampling commutes with a linear map: training therefore reads features at some thousand voxels of each case, drawn so
that rare labels are among them and weighted so that the loss estimates that of all voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from nnssl.encoders.base import Encoder, TokenEncoder, to_encoder_range
from nnssl.evaluation.metrics import dice

LAYERS = 4  # of a plain transformer: the last four, as in DINOv2's and 3DINO's linear evaluation
LEAST_DEVIATION = 1e-4


@dataclass(frozen=True)
class ProbeSettings:
    """Optimisation of the probe; the same for every encoder that is compared."""

    steps: int = 500
    batch_size: int = 4  # cases per step
    voxels: int = 4096  # of a case: half anywhere, half shared out evenly among its labels
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
    """Features of a whole scan, padded at the end with background to a multiple that the encoder takes; on the CPU.

    Args:
        volume: (1, X, Y, Z) stored intensities in [0, 1].
        labels: (X, Y, Z) integers, 0 = background.
    """
    x, y, z = labels.shape
    multiple = encoder.spec.crop_multiple
    padding = [end for side in (z, y, x) for end in (0, -side % multiple)]
    device = next(encoder.parameters(), volume).device
    scaled = to_encoder_range(F.pad(volume, padding).clamp(0, 1), encoder.spec.intensity.encoder_range)
    maps = frozen_maps(encoder, scaled[None].to(device))
    return ProbeCase([one[0].half().cpu() for one in maps], F.pad(labels.long(), padding), (x, y, z))


def frozen_maps(encoder: Encoder, volume: Tensor) -> list[Tensor]:
    """The last four layers of a plain transformer, or all maps of a pyramid, of (B, C, X, Y, Z)."""
    encoder.eval()
    if isinstance(encoder, TokenEncoder):
        return encoder.layer_maps(volume, range(max(0, encoder.spec.depth - LAYERS), encoder.spec.depth))
    return encoder(volume).maps


class LinearProbe(nn.Module):
    """Standardised maps to the sum of their linear logits at full resolution."""

    def __init__(self, cases: Sequence[ProbeCase], classes: int) -> None:
        super().__init__()
        self.moments = [_moments([case.maps[level] for case in cases]) for level in range(len(cases[0].maps))]
        # skip_init: nothing is drawn from the global generator, which a pretraining beside this may be using
        self.weights = nn.ModuleList(skip_init(nn.Conv3d, len(mean), classes, 1) for mean, _ in self.moments)
        for layer in self.weights:
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, case: ProbeCase) -> Tensor:
        """Logits (1, classes, X, Y, Z) of one case."""
        size = tuple(case.labels.shape)
        total = torch.zeros(())
        for level, one in enumerate(case.maps):
            logits = self.weights[level](self.standard(one, level)[None])
            total = total + F.interpolate(logits, size=size, mode="trilinear", align_corners=False)
        return total

    def at_voxels(self, features: Sequence[Tensor]) -> Tensor:
        """Logits (voxels, classes) of standardised features (C, voxels, 1, 1) of every map."""
        levels = zip(self.weights, features, strict=True)
        total = torch.stack([layer(feature[None])[0, :, :, 0, 0] for layer, feature in levels]).sum(0)
        return total.T

    def features_at(self, case: ProbeCase, voxels: Tensor) -> list[Tensor]:
        """Standardised features (C, voxels, 1, 1) of every map at (voxels, 3), interpolated as the logits are."""
        grid = (2 * voxels + 1) / torch.tensor(case.labels.shape) - 1  # voxel centres, as in F.interpolate
        grid = grid.flip(-1)[None, :, None, None].float()
        return [
            F.grid_sample(self.standard(one, level)[None], grid, padding_mode="border", align_corners=False)[0]
            for level, one in enumerate(case.maps)
        ]

    def standard(self, one: Tensor, level: int) -> Tensor:
        """A map (C, X, Y, Z) with mean 0 and deviation 1 over the training cases."""
        mean, deviation = self.moments[level]
        return (one.float() - mean[:, None, None, None]) / deviation[:, None, None, None]


@dataclass(frozen=True)
class DrawnVoxels:
    """What a probe is trained on of one case."""

    features: list[Tensor]  # (C, voxels, 1, 1) of every map, standardised
    labels: Tensor  # (voxels,)
    weight: Tensor  # (voxels,): weighted sums estimate sums over the scan


@torch.no_grad()
def drawn_voxels(probe: LinearProbe, case: ProbeCase, count: int, generator: torch.Generator) -> DrawnVoxels:
    """Voxels of the scan (not of its padding): half uniformly, half evenly over the labels that it has."""
    inside = case.labels[tuple(slice(0, side) for side in case.shape)]
    flat = inside.flatten()
    values, amounts = flat.unique(return_counts=True)
    share = count // 2 // len(values)
    drawn = [torch.randint(len(flat), (count - share * len(values),), generator=generator)]
    for value in values:
        found = (flat == value).nonzero()[:, 0]
        drawn.append(found[torch.randint(len(found), (share,), generator=generator)])
    position = torch.cat(drawn)
    expected = len(drawn[0]) / len(flat) + share / amounts.float()  # how often a voxel of each label is drawn
    weight = 1 / expected[torch.searchsorted(values, flat[position])]
    voxels = torch.stack(torch.unravel_index(position, case.shape), -1)
    return DrawnVoxels(probe.features_at(case, voxels), flat[position], weight)


def train_probe(
    cases: Sequence[ProbeCase], classes: int, *, seed: int, settings: ProbeSettings | None = None
) -> LinearProbe:
    """A probe trained on some cases with cross entropy and soft Dice; the seed draws voxels and orders the cases."""
    settings = settings or ProbeSettings()
    probe, generator = LinearProbe(cases, classes), torch.Generator().manual_seed(seed)
    drawn = [drawn_voxels(probe, case, settings.voxels, generator) for case in cases]
    optimiser = torch.optim.AdamW(probe.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps)
    for _ in range(settings.steps):
        batch = torch.randperm(len(cases), generator=generator)[: settings.batch_size].tolist()
        loss = _loss(probe, [drawn[index] for index in batch])
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


def _loss(probe: LinearProbe, batch: Sequence[DrawnVoxels]) -> Tensor:
    """Cross entropy and 1 - soft Dice (of the batch as one scan; foreground) with the voxels' weights."""
    logits = torch.cat([probe.at_voxels(one.features) for one in batch])
    labels, weight = torch.cat([one.labels for one in batch]), torch.cat([one.weight for one in batch])
    shares, truth = logits.softmax(1)[:, 1:], F.one_hot(labels, logits.shape[1])[:, 1:].float()
    both, either = weight @ (shares * truth), weight @ (shares + truth)
    overlap = (2 * both + 1) / (either + 1)
    entropy = (F.cross_entropy(logits, labels, reduction="none") * weight).sum() / weight.sum()
    return entropy + 1 - overlap.mean()
