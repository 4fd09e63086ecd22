"""Stored volumes as an endless, seeded stream of training batches that is the same for any number of data workers."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import blosc2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from nnssl.data.seeds import derived_seed, generator_at

Sample = dict[str, Tensor]
Prepare = Callable[[Tensor, torch.Generator], Sample]

_ORDER, _SAMPLE = 0, 1  # what a derived seed is for


class StoredFolder(NamedTuple):
    """Preprocessed cases of one data set: `folder/<case>.b2nd`, (C, X, Y, Z) float32 in [0, 1]."""

    dataset: str
    folder: Path
    cases: Sequence[str]


class StoredImage(NamedTuple):
    """One channel of one stored case."""

    dataset: str
    case: str
    path: Path
    channel: int


class StoredVolumes:
    """Single-channel images on disk; every channel of a case is its own image, as in 3DINO.

    Args:
        folders: what to read.
        min_side: images with a side of fewer voxels are left out (3DINO: 25, then 49 at high resolution).

    Raises:
        FileNotFoundError: a case has no stored file.
        ValueError: a stored file is damaged, or no image is left.
    """

    def __init__(self, folders: Sequence[StoredFolder], min_side: int = 0) -> None:
        self.images: list[StoredImage] = []
        self.left_out = 0
        for dataset, folder, cases in folders:
            for case in cases:
                path = folder / f"{case}.b2nd"
                channels, *sides = _open(path).shape
                if min(sides) < min_side:
                    self.left_out += channels
                else:
                    self.images += [StoredImage(dataset, case, path, channel) for channel in range(channels)]
        if not self.images:
            raise ValueError(
                f"reading stored volumes: {self.left_out} image(s) found, none with every side of at least {min_side} "
                "voxels; lower -min_side or preprocess more cases"
            )

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Tensor:
        """Image `index` as (1, X, Y, Z) float32."""
        image = self.images[index]
        stored = _open(image.path)
        try:
            values = np.asarray(stored[image.channel], dtype=np.float32)
        except (RuntimeError, ValueError, OSError) as error:
            raise _damaged(image.path, str(error)) from error
        if not np.isfinite(values.sum(dtype=np.float64)):
            raise _damaged(image.path, "it holds NaN or infinite voxels")
        return torch.from_numpy(values)[None]

    @property
    def cases(self) -> list[tuple[str, str]]:
        """(data set, case) of every case that gives at least one image, in order."""
        return list(dict.fromkeys((image.dataset, image.case) for image in self.images))


class PreparedSamples(Dataset):
    """Sample number -> prepared views; the number alone decides image and random draws. Numbers have no end.

    The images pass by in a new seeded order each time through. An error comes back as a value, because a data worker
    would otherwise wrap its one line into a traceback.
    """

    def __init__(self, volumes: StoredVolumes, prepare: Prepare, seed: int) -> None:
        self.volumes, self.prepare, self.seed = volumes, prepare, seed
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def image_of(self, number: int) -> int:
        """Index of the image that sample `number` shows."""
        turn, position = divmod(number, len(self.volumes))
        if self._order[0] != turn:
            order = np.random.default_rng(derived_seed(self.seed, _ORDER, turn)).permutation(len(self.volumes))
            self._order = (turn, order)
        return int(self._order[1][position])

    def __getitem__(self, number: int) -> Sample | Exception:
        try:
            volume = self.volumes.read(self.image_of(number))
            return self.prepare(volume, generator_at(self.seed, _SAMPLE, number))
        except (ValueError, OSError) as error:
            return error


def batches(
    samples: PreparedSamples, batch_size: int, *, first_step: int = 0, workers: int = 0, pin_memory: bool = False
) -> Iterator[Sample]:
    """Collated batches without end; batch k holds samples k * batch_size ... whatever `workers` is.

    Args:
        first_step: number of the first batch; a continued run starts where it stopped.
        workers: data processes; 0 prepares in this process.
        pin_memory: page-locked memory, for copies to a GPU.

    Raises:
        ValueError, OSError: a stored volume could not be read; the message names the file.
    """
    loader = DataLoader(
        samples,
        batch_sampler=_Numbers(batch_size, first_step),
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
    )
    for batch in loader:
        if isinstance(batch, Exception):
            raise batch
        yield batch


def default_workers() -> int:
    """$nnUNet_n_proc_DA where it is set, else none on one or two cores and up to 12 on more (nnU-Net's ceiling)."""
    text = os.environ.get("nnUNet_n_proc_DA")  # noqa: SIM112 - nnU-Net's own name
    if text:
        if not text.isdigit():
            raise ValueError(
                f"environment variable nnUNet_n_proc_DA={text!r}: expected a number of processes, 0 or more"
            )
        return int(text)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if cores <= 2 else min(12, cores - 1)


def stored_cases(folder: Path) -> list[str]:
    """Identifiers of the cases in a preprocessed folder, sorted."""
    return sorted(path.stem for path in folder.glob("*.b2nd") if not path.stem.endswith("_seg"))


class _Numbers:
    """Sample numbers of batch first_step, first_step + 1, ..."""

    def __init__(self, batch_size: int, first_step: int) -> None:
        self.batch_size, self.first_step = batch_size, first_step

    def __iter__(self) -> Iterator[list[int]]:
        for step in itertools.count(self.first_step):
            yield list(range(step * self.batch_size, (step + 1) * self.batch_size))


def _collate(items: list[Sample | Exception]) -> Sample | Exception:
    for item in items:
        if isinstance(item, Exception):
            return item
    return default_collate(items)


def _open(path: Path) -> blosc2.NDArray:
    if not path.is_file():
        raise FileNotFoundError(f"reading stored volume {path}: no such file; run nnssl_plan_and_preprocess again")
    try:
        return blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
    except (RuntimeError, ValueError, OSError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"reading stored volume {path}: {reason or 'it cannot be decoded'}; "
        "delete it and run nnssl_plan_and_preprocess again for this data set"
    )
