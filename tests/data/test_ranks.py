"""Many processes read one stream: together they show every volume once per epoch, whatever their number and workers."""

from collections import Counter
from itertools import islice
from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch
from torch import Tensor

from nnssl.data.lazy_volume import LazyVolume
from nnssl.data.mixing import Passes
from nnssl.data.volumes import PreparedSamples, StoredFolder, StoredVolumes, _Numbers, batches, stored_cases

RANKS = 64
Read = list[tuple[int, float]]  # (image, first random draw) of each sample


def _samples(folder: Path, images: int, datasets: int = 1, weights: dict[str, float] | None = None) -> PreparedSamples:
    """Images of 4^3 voxels that all hold their own number, the data sets one after the other."""
    folders = []
    for k, numbers in enumerate(np.array_split(np.arange(images), datasets)):
        own = folder / f"set{k}"
        own.mkdir()
        for number in numbers:
            values = np.full((1, 4, 4, 4), number, dtype=np.float16)
            blosc2.asarray(values, urlpath=str(own / f"case{number:04d}.b2nd"), mode="w")
        folders.append(StoredFolder(f"set{k}", own, stored_cases(own)))
    return PreparedSamples(StoredVolumes(folders), _show, seed=3, weights=weights)


def _show(volume: LazyVolume, generator: torch.Generator) -> dict[str, Tensor]:
    return {"image": volume[:, :1, :1, :1].long().flatten()[0], "draw": torch.rand((), generator=generator)}


def _read(samples: PreparedSamples, steps: int, *, ranks: int = RANKS, per_rank: int = 1, workers: int = 0) -> Read:
    """What all ranks read in `steps` steps, in the order of the joint batches."""
    streams = []
    for rank in range(ranks):
        own = batches(samples, ranks * per_rank, workers=workers, share=(rank, ranks))
        streams.append(
            [list(zip(*(batch[k].tolist() for k in ("image", "draw")), strict=True)) for batch in islice(own, steps)]
        )
    return [sample for step in zip(*streams, strict=True) for part in step for sample in part]


@pytest.mark.parametrize("images", [64, 100, 37])  # as many as ranks, and numbers that no share divides
def test_64_ranks_read_every_volume_once_per_epoch(tmp_path: Path, images: int) -> None:
    steps = -(-3 * images // RANKS)
    read = _read(_samples(tmp_path, images), steps)
    for epoch in range(3):
        assert sorted(image for image, _ in read[epoch * images : (epoch + 1) * images]) == list(range(images))
    assert len({draw for _, draw in read}) == steps * RANKS  # no two samples are alike, on whatever rank


@pytest.mark.parametrize("per_rank", [1, 3])
def test_with_weights_64_ranks_keep_the_shares_and_repeat_no_volume_before_its_data_set_is_through(
    tmp_path: Path, per_rank: int
) -> None:
    samples = _samples(tmp_path, 31, datasets=2, weights={"set0": 3.0, "set1": 1.0})  # 16 and 15 images
    shown = [image for image, _ in _read(samples, 1024 // RANKS // per_rank, per_rank=per_rank)]
    for own, share in ((range(16), 0.75), (range(16, 31), 0.25)):
        times = Counter(image for image in shown if image in own)
        assert abs(times.total() - share * len(shown)) < 0.1 * len(shown)
        assert set(times) == set(own)
    whole = [image for image, _ in _read(samples, 1024, ranks=1)]
    assert shown == whole[: len(shown)]
    for own, share in ((range(16), 768), (range(16, 31), 256)):  # a block of 1,024 samples holds whole shares
        times = Counter(image for image in whole if image in own)
        assert times.total() == share and max(times.values()) - min(times.values()) <= 1


def test_ranks_with_workers_read_what_ranks_without_do(tmp_path: Path) -> None:
    samples = _samples(tmp_path, 7)
    assert _read(samples, 3, ranks=3, per_rank=2, workers=2) == _read(samples, 3, ranks=3, per_rank=2)


@pytest.mark.slow
def test_64_ranks_with_two_workers_each_read_every_volume_once_per_epoch(tmp_path: Path) -> None:
    read = _read(_samples(tmp_path, 150), 5, workers=2)
    assert sorted(image for image, _ in read[:150]) == sorted(image for image, _ in read[150:300]) == list(range(150))


@pytest.mark.parametrize("ranks", [4, 32, 256])
def test_ranks_share_out_100000_images_without_a_gap(ranks: int) -> None:
    images, batch = 100_000, 512
    steps = -(-2 * images // batch)
    shares = [[n for own in islice(_Numbers(batch, 0, (rank, ranks)), steps) for n in own] for rank in range(ranks)]
    assert {len(share) for share in shares} == {steps * batch // ranks}
    assert np.array_equal(np.sort(np.concatenate(shares)), np.arange(steps * batch))
    order = Passes(images, 11, 0)
    for epoch in range(2):
        shown = np.bincount([order(number) for number in range(epoch * images, (epoch + 1) * images)])
        assert len(shown) == images and (shown == 1).all()
