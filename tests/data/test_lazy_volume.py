"""A volume that is read box by box gives what the whole one holds, and reads no more than it must."""

from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch

from nnssl.data.case_store import StoredCase, write_case
from nnssl.data.lazy_volume import WHOLE_SHARE, LazyVolume
from nnssl.transforms.views import CropRule, ViewSampling, plain_views, random_view

SHAPE = (2, 30, 26, 40)


def _stored(folder: Path, kind: str = "float32", chunks: tuple[int, ...] = (1, 8, 8, 8)) -> tuple[Path, np.ndarray]:
    values = np.random.default_rng(0).random(SHAPE, dtype=np.float32).astype(kind)
    path = folder / f"{kind}.b2nd"
    blosc2.asarray(values, urlpath=str(path), mode="w", chunks=chunks)
    return path, values


@pytest.mark.parametrize("kind", ["float16", "float32"])
@pytest.mark.parametrize(
    "box",
    [
        slice(None),
        (slice(None), slice(3, 9), slice(0, 5), slice(30, 40)),
        (slice(None), slice(1, 30), slice(0, 26), slice(5, 39)),
        (slice(0, 1), slice(None), slice(4, 5)),
        (slice(None), slice(25, 99), slice(-4, None), slice(None, 3)),
    ],
)
def test_a_box_holds_what_the_whole_volume_holds_there(tmp_path: Path, kind: str, box: slice | tuple) -> None:
    path, values = _stored(tmp_path, kind)
    for channel in range(2):
        found = LazyVolume(path, channel)[box]
        assert found.dtype == torch.float32 and found.is_contiguous()
        np.testing.assert_array_equal(found.numpy(), values[channel : channel + 1].astype(np.float32)[box])


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 5, 70, 9), (1, 65, 33, 130)]
)  # below and above a block and a chunk
def test_a_stored_case_is_read_back_whatever_its_sides(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).random(shape, dtype=np.float32).astype(np.float16)
    case = StoredCase(values, np.zeros((1, *shape[1:]), dtype=np.int16), {})
    write_case(tmp_path, "case", case, key="k")
    for channel in range(shape[0]):
        volume, middle = LazyVolume(tmp_path / "case.b2nd", channel), [slice(side // 3, side) for side in shape[1:]]
        np.testing.assert_array_equal(volume[(slice(None), *middle)][0].numpy(), values[(channel, *middle)])


def test_its_shape_is_that_of_one_channel(tmp_path: Path) -> None:
    assert LazyVolume(_stored(tmp_path)[0], 1).shape == torch.Size((1, *SHAPE[1:]))


def test_a_small_box_touches_only_its_own_chunks(tmp_path: Path) -> None:
    path, values = _stored(tmp_path)
    whole = blosc2.open(str(path), mode="r")
    offset = whole.schunk.cbytes // 2  # damage beyond the middle of the file lies in the second channel
    content = bytearray(path.read_bytes())
    content[offset + 3000 : -2000] = bytes(len(content) - offset - 5000)
    path.write_bytes(bytes(content))
    found = LazyVolume(path, 0)[:, :8, :8, :8]
    np.testing.assert_array_equal(found.numpy(), values[:1, :8, :8, :8])
    with pytest.raises(ValueError, match=r"float32\.b2nd"):
        LazyVolume(path, 1)[:]


def test_a_large_box_makes_the_whole_be_kept_and_a_small_one_does_not(tmp_path: Path) -> None:
    path, values = _stored(tmp_path)
    few = int(WHOLE_SHARE * SHAPE[1])
    for planes in (few, few + 1):
        volume = LazyVolume(path, 0)
        volume[:, :planes]
        blosc2.asarray(np.zeros_like(values), urlpath=str(path), mode="w", chunks=(1, 8, 8, 8))  # beneath the reader
        kept = torch.from_numpy(values[:1])
        unchanged = _same_or_unreadable(volume, kept)
        assert unchanged == (planes > few)
        path, values = _stored(tmp_path)


def _same_or_unreadable(volume: LazyVolume, kept: torch.Tensor) -> bool:
    """Whether the last planes are still those of before."""
    try:
        return bool(torch.equal(volume[:, 25:], kept[:, 25:]))
    except ValueError:
        return False


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_a_box_with_a_voxel_that_is_no_number_is_refused_and_its_neighbour_read(
    tmp_path: Path, kind: str, value: float
) -> None:
    values = np.zeros((1, 20, 20, 20), dtype=kind)
    values[0, 15, 4, 4] = value
    blosc2.asarray(values, urlpath=str(tmp_path / "bad.b2nd"), mode="w", chunks=(1, 5, 5, 5))
    volume = LazyVolume(tmp_path / "bad.b2nd", 0)
    assert volume[:, :4, :8, :8].sum() == 0
    with pytest.raises(ValueError, match=r"bad\.b2nd: it holds NaN"):
        volume[:, 12:16, :8, :8]


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_numbers_beyond_the_stored_range_are_read_as_they_are(tmp_path: Path, kind: str) -> None:
    values = np.linspace(-3, 5, 1000).reshape(1, 10, 10, 10).astype(kind)
    blosc2.asarray(values, urlpath=str(tmp_path / "wide.b2nd"), mode="w")
    np.testing.assert_array_equal(LazyVolume(tmp_path / "wide.b2nd", 0)[:].numpy(), values.astype(np.float32))


@pytest.mark.parametrize("size", [(6, 6, 6), (16, 16, 16), (34, 20, 48)])
@pytest.mark.parametrize("kind", ["whole", "subvolume", "min_overlap"])
def test_plain_views_are_the_same_from_a_file_and_from_memory(
    tmp_path: Path, size: tuple[int, int, int], kind: str
) -> None:
    path, values = _stored(tmp_path, "float16")
    memory = torch.from_numpy(values[:1].astype(np.float32))
    for seed in range(4):
        first, second = (
            plain_views(
                volume, size, count=3, generator=torch.Generator().manual_seed(seed), sampling=ViewSampling(kind)
            )
            for volume in (LazyVolume(path, 0), memory)
        )
        assert torch.equal(first, second)


@pytest.mark.parametrize("share", [(0.1, 0.3), (0.5, 1.0)])
def test_random_views_are_the_same_from_a_file_and_from_memory(tmp_path: Path, share: tuple[float, float]) -> None:
    path, values = _stored(tmp_path, "float16")
    memory, rule = torch.from_numpy(values[:1].astype(np.float32)), CropRule(share, share)
    for seed in range(6):
        first, second = (
            random_view(volume, rule, size=(12, 12, 12), depth_axis=2, generator=torch.Generator().manual_seed(seed))
            for volume in (LazyVolume(path, 0), memory)
        )
        torch.testing.assert_close(first, second, rtol=0, atol=1e-6)
