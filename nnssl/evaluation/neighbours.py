"""k nearest neighbours of voxels in a frozen encoder's features: what they tell about labels without any training."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nnssl.evaluation.probing import LinearProbe, ProbeCase

NEIGHBOURS, TEMPERATURE = 20, 0.07  # Wu et al. 2018 (arXiv:1805.01978); DINO (arXiv:2104.14294) finds 20 best
VOXELS = 256  # of a case, shared out evenly among its labels


def nearest_labels(
    queries: Tensor,
    features: Tensor,
    labels: Tensor,
    *,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Label (Q,) of each query: its nearest features by cosine similarity s vote with weight exp(s / temperature).

    Args:
        queries, features: (Q, D) and (N, D); fewer than `neighbours` features all vote.
        labels: (N,) int64 from 0.
    """
    similarity = F.normalize(queries, dim=1) @ F.normalize(features, dim=1).T
    nearest, index = similarity.topk(min(neighbours, len(features)), dim=1)
    votes = nearest.new_zeros(len(queries), int(labels.max()) + 1)
    return votes.scatter_add_(1, labels[index], (nearest / temperature).exp()).argmax(1)


def recalls(found: Tensor, truth: Tensor, classes: int) -> np.ndarray:
    """Share of each label's voxels that got it, (classes,); NaN where the truth lacks it.

    The mean is the balanced accuracy: 1 / classes where the features tell nothing.
    """
    right = [(found == label)[truth == label].double().mean() for label in range(classes)]
    return torch.stack(right).numpy()


@torch.no_grad()
def neighbour_scores(
    probe: LinearProbe, train: Sequence[ProbeCase], held_out: Sequence[ProbeCase], classes: int
) -> np.ndarray:
    """Recall (classes,) of held-out voxels by their nearest voxels of the training cases.

    The features are those of the linear probe: standardised, of all its maps. Voxels are drawn alike every time.
    """
    (features, labels), (queries, truth) = (_drawn(probe, cases) for cases in (train, held_out))
    return recalls(nearest_labels(queries, features, labels), truth, classes)


def _drawn(probe: LinearProbe, cases: Sequence[ProbeCase]) -> tuple[Tensor, Tensor]:
    """Features (voxels, D) and labels (voxels,) of some voxels of each case."""
    features, labels = [], []
    for number, case in enumerate(cases):
        voxels = _even_voxels(case, torch.Generator().manual_seed(number))
        maps = probe.features_at(case, voxels)
        features.append(torch.cat([one[:, :, 0, 0] for one in maps]).T)
        labels.append(case.labels[tuple(voxels.T)])
    return torch.cat(features), torch.cat(labels)


def _even_voxels(case: ProbeCase, generator: torch.Generator) -> Tensor:
    """(voxels, 3) of the scan, as many of each of its labels, fewer where a label has fewer."""
    inside = case.labels[tuple(slice(0, side) for side in case.shape)]
    values = inside.unique()
    chosen = []
    for value in values:
        found = (inside == value).nonzero()
        chosen.append(found[torch.randperm(len(found), generator=generator)[: VOXELS // len(values)]])
    return torch.cat(chosen)
