"""Stored volumes: what is read, in which order, and what a damaged file says."""

from collections import Counter
from itertools import islice
from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch
from torch import Tensor

from nnssl.data.lazy_volume import LazyVolume
from nnssl.data.volumes import (
    PreparedSamples,
    StoredFolder,
    StoredVolumes,
    batches,
    default_workers,
    stored_cases,
)


def store(folder: Path, case: str, shape: tuple[int, ...], value: float = 0.5) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(len(case)).random(shape, dtype=np.float32) * 0.01 + value
    blosc2.asarray(values, urlpath=str(folder / f"{case}.b2nd"), mode="w", chunks=(1, 8, 8, 8))
    return values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(5):
        store(tmp_path, f"case{number}", (1, 10, 11, 12), value=number)
    return tmp_path


def five(folder: Path) -> StoredVolumes:
    return StoredVolumes([StoredFolder("Dataset001_Toy", folder, stored_cases(folder))])


def describe(volume: LazyVolume, generator: torch.Generator) -> dict[str, Tensor]:
    """Which volume it is, and the first random draw."""
    return {"volume": volume[:].mean().round(), "draw": torch.rand(2, generator=generator)}


def test_every_channel_of_a_case_is_an_image_of_its_own(tmp_path: Path) -> None:
    values = store(tmp_path, "two", (2, 9, 10, 11))
    volumes = StoredVolumes([StoredFolder("Dataset001_Toy", tmp_path, ["two"])])
    assert len(volumes) == 2
    assert volumes.cases == [("Dataset001_Toy", "two")]
    for channel in range(2):
        np.testing.assert_array_equal(volumes.volume(channel)[:].numpy(), values[channel][None])


def test_files_written_by_nnunet_are_read(tmp_path: Path) -> None:
    dataset = pytest.importorskip("nnunetv2.training.dataloading.nnunet_dataset").nnUNetDatasetBlosc2
    values = np.random.default_rng(0).random((1, 20, 21, 22), dtype=np.float32)
    dataset.save_case(values, np.zeros_like(values, dtype=np.int16), {}, str(tmp_path / "brain"))
    assert stored_cases(tmp_path) == ["brain"]
    volumes = StoredVolumes([StoredFolder("Dataset001_Toy", tmp_path, ["brain"])])
    np.testing.assert_array_equal(volumes.volume(0)[:].numpy(), values)


def test_segmentations_are_not_cases(folder: Path) -> None:
    store(folder, "case0_seg", (1, 10, 11, 12))
    assert stored_cases(folder) == [f"case{number}" for number in range(5)]


def test_one_pass_shows_every_image_once_and_the_next_pass_in_another_order(folder: Path) -> None:
    samples = PreparedSamples(five(folder), describe, seed=3)
    order = [samples.image_of(number) for number in range(15)]
    passes = [order[:5], order[5:10], order[10:]]
    assert all(sorted(one) == [0, 1, 2, 3, 4] for one in passes)
    assert len({tuple(one) for one in passes}) > 1


def test_another_seed_gives_another_order_and_other_draws(folder: Path) -> None:
    first, second = (next(batches(PreparedSamples(five(folder), describe, seed), 5)) for seed in (0, 1))
    assert not torch.equal(first["volume"], second["volume"])
    assert not torch.equal(first["draw"], second["draw"])


@pytest.mark.parametrize("workers", [1, 2])
def test_the_stream_is_the_same_for_any_number_of_workers(folder: Path, workers: int) -> None:
    samples = PreparedSamples(five(folder), describe, seed=7)
    alone = list(islice(batches(samples, 3), 4))
    helped = list(islice(batches(samples, 3, workers=workers), 4))
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one["volume"], other["volume"]) and torch.equal(one["draw"], other["draw"])


def test_a_stream_that_starts_at_step_k_is_the_tail_of_the_whole_stream(folder: Path) -> None:
    samples = PreparedSamples(five(folder), describe, seed=7)
    whole = list(islice(batches(samples, 2), 6))
    tail = list(islice(batches(samples, 2, first_step=4), 2))
    assert [b["draw"].tolist() for b in whole[4:]] == [b["draw"].tolist() for b in tail]


def test_a_batch_may_be_larger_than_the_number_of_images(folder: Path) -> None:
    batch = next(batches(PreparedSamples(five(folder), describe, 0), 12))
    counts = Counter(batch["volume"].tolist())
    assert sum(counts.values()) == 12
    assert set(counts.values()) <= {2, 3}
    assert len({tuple(draw) for draw in batch["draw"].tolist()}) == 12


def test_thin_images_are_left_out_and_counted(tmp_path: Path) -> None:
    store(tmp_path, "thick", (1, 12, 12, 12))
    store(tmp_path, "thin", (2, 12, 12, 9))
    volumes = StoredVolumes([StoredFolder("Dataset001_Toy", tmp_path, ["thick", "thin"])], min_side=10)
    assert volumes.cases == [("Dataset001_Toy", "thick")]
    assert volumes.left_out == 2
    with pytest.raises(ValueError, match="none with every side of at least 20"):
        StoredVolumes([StoredFolder("Dataset001_Toy", tmp_path, ["thick", "thin"])], min_side=20)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_damaged_inside_is_named_in_one_line(folder: Path, workers: int) -> None:
    volumes = five(folder)
    for number in range(5):
        path = folder / f"case{number}.b2nd"
        content = bytearray(path.read_bytes())
        content[300 : len(content) - 300] = bytes(reversed(content[300 : len(content) - 300]))
        path.write_bytes(bytes(content))
    with pytest.raises(
        ValueError, match=r"reading stored volume .*case\d\.b2nd: .* nnssl_plan_and_preprocess"
    ) as error:
        next(batches(PreparedSamples(volumes, describe, 0), 2, workers=workers))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", [b"", b"not blosc2 at all", None])
def test_a_truncated_or_foreign_file_is_named(folder: Path, damage: bytes | None) -> None:
    path = folder / "case2.b2nd"
    path.write_bytes(path.read_bytes()[:-400] if damage is None else damage)
    with pytest.raises(ValueError, match=r"case2\.b2nd"):
        five(folder)


def test_a_missing_file_says_what_to_run(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.b2nd: no such file; run nnssl_plan_and_preprocess"):
        StoredVolumes([StoredFolder("Dataset001_Toy", folder, ["gone"])])


def test_stored_nan_is_refused(tmp_path: Path) -> None:
    values = np.zeros((1, 9, 9, 9), dtype=np.float32)
    values[0, 4, 4, 4] = np.nan
    blosc2.asarray(values, urlpath=str(tmp_path / "bad.b2nd"), mode="w")
    with pytest.raises(ValueError, match=r"bad\.b2nd: it holds NaN"):
        StoredVolumes([StoredFolder("Dataset001_Toy", tmp_path, ["bad"])]).volume(0)[:]


def test_the_number_of_workers_comes_from_nnunets_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "5")
    assert default_workers() == 5
    monkeypatch.setenv("nnUNet_n_proc_DA", "many")
    with pytest.raises(ValueError, match="nnUNet_n_proc_DA='many'"):
        default_workers()


def test_no_two_samples_share_a_random_stream_whatever_worker_draws_them(folder: Path) -> None:
    samples = PreparedSamples(five(folder), describe, seed=7)
    for workers in (0, 2):
        draws = [
            tuple(draw) for batch in islice(batches(samples, 4, workers=workers), 6) for draw in batch["draw"].tolist()
        ]
        assert len(set(draws)) == 24


def test_processes_share_the_batches_of_one_stream(folder: Path) -> None:
    samples = PreparedSamples(five(folder), describe, seed=7, weights={"Dataset001_Toy": 1.0})
    whole = [batch["draw"] for batch in islice(batches(samples, 4), 3)]
    shares = [[batch["draw"] for batch in islice(batches(samples, 4, share=(rank, 2)), 3)] for rank in range(2)]
    for one, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(one, torch.cat(parts))


def test_a_batch_holds_first_views_first_in_memory(folder: Path) -> None:
    def two_views(volume: LazyVolume, generator: torch.Generator) -> dict[str, Tensor]:
        views = torch.stack([volume[:, :2, :2, :2], -volume[:, :2, :2, :2]])
        return {"views": views, "label": torch.rand((), generator=generator)}

    samples = PreparedSamples(five(folder), two_views, seed=7)
    for workers in (0, 2):
        batch = next(iter(batches(samples, 3, workers=workers)))
        assert batch["views"].shape == (3, 2, 1, 2, 2, 2) and batch["label"].shape == (3,)
        assert batch["views"].transpose(0, 1).is_contiguous()
        for number, views in enumerate(batch["views"]):
            assert torch.equal(views, samples[number]["views"])
