"""Stored volumes as an endless, seeded stream of training batches that is the same for any number of data workers."""

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from nnssl.data.collation import Batch, Sample, collate
from nnssl.data.freed_memory import keep_freed_memory
from nnssl.data.lazy_volume import LazyVolume, open_stored
from nnssl.data.mixing import Passes, Weighted
from nnssl.data.seeds import generator_at

Prepare = Callable[[Any, torch.Generator], Sample]  # takes a LazyVolume for the tensor that it stands in for

_ORDER, _SAMPLE = 0, 1  # what a derived seed is for


class StoredFolder(NamedTuple):
    """Preprocessed cases of one data set: `folder/<case>.b2nd`, (C, X, Y, Z) floating point in [0, 1]."""

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
                channels, *sides = open_stored(path).shape
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

    def volume(self, index: int) -> LazyVolume:
        """Image `index` as (1, X, Y, Z), read where it is indexed."""
        image = self.images[index]
        return LazyVolume(image.path, image.channel)

    @property
    def cases(self) -> list[tuple[str, str]]:
        """(data set, case) of every case that gives at least one image, in order."""
        return list(dict.fromkeys((image.dataset, image.case) for image in self.images))


class PreparedSamples(Dataset):
    """Sample number -> prepared views; the number alone decides image and random draws. Numbers have no end.

    The images pass by in a new seeded order each time through. An error comes back as a value, because a data worker
    would otherwise wrap its one line into a traceback.

    Args:
        volumes: the images.
        prepare: a pretext task's; draws from the generator of the sample.
        seed: of the run.
        weights: of each data set, for shares that do not follow the number of its images (`mixing.Weighted`).
    """

    def __init__(
        self, volumes: StoredVolumes, prepare: Prepare, seed: int, weights: Mapping[str, float] | None = None
    ) -> None:
        self.volumes, self.prepare, self.seed = volumes, prepare, seed
        owners = [image.dataset for image in volumes.images]
        self.image_of = Weighted(owners, weights, seed) if weights else Passes(len(volumes), seed, _ORDER)

    def __getitem__(self, number: int) -> Sample | Exception:
        try:
            volume = self.volumes.volume(self.image_of(number))
            return self.prepare(volume, generator_at(self.seed, _SAMPLE, number))
        except (ValueError, OSError) as error:
            return error


def batches(
    samples: PreparedSamples,
    batch_size: int,
    *,
    first_step: int = 0,
    workers: int = 0,
    pin_memory: bool = False,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Collated batches without end; batch k holds samples k * batch_size ... whatever `workers` is.

    Args:
        batch_size: of all processes; a multiple of their number.
        first_step: number of the first batch; a continued run starts where it stopped.
        share: number of this process and how many share each batch; process r gets the r-th part of it.
        workers: data processes; 0 prepares in this process.
        pin_memory: page-locked memory, for copies to a GPU.

    Raises:
        ValueError, OSError: a stored volume could not be read; the message names the file.
    """
    if not workers:
        keep_freed_memory()
    loader = DataLoader(
        samples,
        batch_sampler=_Numbers(batch_size, first_step, share),
        num_workers=workers,
        collate_fn=_collate_or_raise_later,
        worker_init_fn=keep_freed_memory,
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
    """Sample numbers of this process's share of batch first_step, first_step + 1, ..."""

    def __init__(self, batch_size: int, first_step: int, share: tuple[int, int]) -> None:
        self.batch_size, self.first_step, (self.rank, self.processes) = batch_size, first_step, share

    def __iter__(self) -> Iterator[list[int]]:
        own = self.batch_size // self.processes
        for step in itertools.count(self.first_step):
            first = step * self.batch_size + self.rank * own
            yield list(range(first, first + own))


def _collate_or_raise_later(items: list[Sample | Exception]) -> Batch | Exception:
    samples: list[Sample] = []
    for item in items:
        if isinstance(item, Exception):
            return item
        samples.append(item)
    return collate(samples)
