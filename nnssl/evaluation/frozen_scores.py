"""What the features of an encoder in pretraining tell about labels: k nearest neighbours and a short linear probe."""

import re
from collections.abc import Sequence

import numpy as np

from nnssl.encoders.base import Encoder
from nnssl.evaluation.labelled import LabelledCrop, LabelledSet
from nnssl.evaluation.neighbours import neighbour_scores
from nnssl.evaluation.probing import ProbeCase, ProbeSettings, frozen_case, probe_scores, train_probe

SETTINGS = ProbeSettings(steps=200, voxels=1024)  # seconds; comparisons for a report take ProbeSettings()


def frozen_scores(encoder: Encoder, labelled: LabelledSet) -> dict[str, float]:
    """Scores on the held-out crops, in [0, 1]; every call draws alike and leaves the global generator alone.

    Computed in float32: leaving an autocast region empties a cache that all threads share, and a training in another
    thread would round its gradients differently.

    Returns:
        "probe/knn": mean recall of the labels, background included; with C labels, features that tell nothing give
        1 / C. "probe/linear": mean Dice of the foreground labels. And both for each label, as "probe/linear_NAME".
        A label that no held-out crop holds is left out.
    """
    train, held_out = _cases(encoder, labelled.train), _cases(encoder, labelled.held_out)
    classes = len(labelled.names)
    probe = train_probe(train, classes, seed=0, settings=SETTINGS)
    table = probe_scores(probe, held_out, classes)
    known = ~np.isnan(table)
    linear = np.where(known, table, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)
    by_label = {
        "probe/knn": dict(zip(labelled.names, neighbour_scores(probe, train, held_out, classes), strict=True)),
        "probe/linear": dict(zip(labelled.names[1:], linear, strict=True)),
    }
    scores = {name: float(np.nanmean(list(labels.values()))) for name, labels in by_label.items()}
    for name, labels in by_label.items():
        scores |= {f"{name}_{_plain(label)}": float(score) for label, score in labels.items() if np.isfinite(score)}
    return scores


def _cases(encoder: Encoder, crops: Sequence[LabelledCrop]) -> list[ProbeCase]:
    return [frozen_case(encoder, crop.volume, crop.labels) for crop in crops]


def _plain(label: str) -> str:
    """The name with the characters that all loggers take."""
    return re.sub(r"[^\w.-]", "_", label)
