"""Crops of a few labelled, stored scans, chosen alike every time: what a probe looks at during pretraining."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnssl.data.lazy_volume import LazyVolume, damaged, open_stored
from nnssl.data.seeds import generator_at
from nnssl.data.volumes import StoredFolder

CASES = 16  # every second one is held out
FEWEST = 4
_SEED = 20  # of the choice, the same in all runs


@dataclass(frozen=True)
class LabelledCrop:
    """Part of a labelled scan."""

    volume: Tensor  # (1, X, Y, Z) in [0, 1]
    labels: Tensor  # (X, Y, Z) int64: 0 background, else places in `LabelledSet.names`


@dataclass(frozen=True)
class LabelledSet:
    """A few crops of one data set."""

    names: tuple[str, ...]  # of the labels, background first
    train: tuple[LabelledCrop, ...]
    held_out: tuple[LabelledCrop, ...]


def read_labelled(stored: StoredFolder, dataset_json: Mapping[str, Any], crop: Sequence[int]) -> LabelledSet:
    """Up to 16 cases with a label, drawn by a fixed seed: one crop each, around a voxel of the labels in turn.

    Args:
        stored: cases of which only those with labels count; of several channels the first is read.
        dataset_json: nnU-Net's, for the labels.
        crop: sides in voxels, X Y Z; smaller scans are taken whole.

    Raises:
        ValueError: fewer than four labelled cases, an `ignore` label, or a damaged file.
    """
    values = _label_values(dataset_json)
    if "ignore" in dataset_json["labels"]:
        raise ValueError(f"-probe_dataset {stored.dataset}: its label 'ignore' cannot be scored; take another data set")
    crops: list[LabelledCrop] = []
    order = torch.randperm(len(stored.cases), generator=generator_at(_SEED)).tolist()
    for place in order:
        found = _labelled_crop(stored.folder, sorted(stored.cases)[place], list(values), crop, number=len(crops) // 2)
        if found is not None:
            crops.append(found)
        if len(crops) == CASES:
            break
    if len(crops) < FEWEST:
        raise ValueError(
            f"-probe_dataset {stored.dataset}: {len(crops)} stored case(s) with labels, needed are {FEWEST} or more; "
            "take a labelled data set, preprocessed with its labels"
        )
    return LabelledSet(("background", *values.values()), tuple(crops[::2]), tuple(crops[1::2]))


def _label_values(dataset_json: Mapping[str, Any]) -> dict[int, str]:
    """Value in a label map -> name, ascending; a value that only regions name is called by its number."""
    labels = {name: value for name, value in dataset_json["labels"].items() if name not in ("background", "ignore")}
    single = {int(value): name for name, value in labels.items() if not isinstance(value, list | tuple)}
    regions = {int(part) for value in labels.values() if isinstance(value, list | tuple) for part in value}
    return {value: single.get(value, str(value)) for value in sorted({*single, *regions} - {0})}


def _labelled_crop(
    folder: Path, case: str, values: Sequence[int], crop: Sequence[int], *, number: int
) -> LabelledCrop | None:
    """The crop around a voxel of one of the case's labels; which of them goes by `number`. None without labels."""
    path = folder / f"{case}_seg.b2nd"
    if not path.is_file():
        return None
    try:
        stored = np.asarray(open_stored(path)[0])
    except (RuntimeError, OSError) as error:
        raise damaged(path, str(error)) from error
    labels = torch.from_numpy(np.searchsorted(values, stored) + 1) * torch.from_numpy(np.isin(stored, values))
    present = labels.unique()
    present = present[present > 0]
    if not len(present):
        return None
    voxels = (labels == present[number % len(present)]).nonzero()
    centre = voxels[int(torch.randint(len(voxels), (1,), generator=generator_at(_SEED, number)))]
    box = tuple(_around(int(at), side, full) for at, side, full in zip(centre, crop, labels.shape, strict=True))
    return LabelledCrop(LazyVolume(folder / f"{case}.b2nd", 0)[(slice(None), *box)], labels[box].clone())


def _around(centre: int, side: int, full: int) -> slice:
    """`side` voxels around the centre that lie inside the `full` ones, or all of these."""
    start = min(max(centre - side // 2, 0), max(full - side, 0))
    return slice(start, min(start + side, full))
