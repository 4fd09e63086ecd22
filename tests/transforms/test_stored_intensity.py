"""Raw intensities to [0, 1]: golden numbers of the reference, nnU-Net's CTNormalization, degenerate images."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nnssl.transforms.stored_intensity import as_channel_properties, channel_bounds, percentile_bounds, to_stored
from tests.rules import standard_normal

SHAPE = (1, 24, 20, 15)


def images() -> dict[str, np.ndarray]:
    """The regular volumes of golden group 10, by name."""
    volume = (standard_normal("volume", SHAPE) * 300 + 100).astype(np.float32)
    outliers = volume.copy()
    outliers.reshape(-1)[:5], outliers.reshape(-1)[-3:] = 1e5, -9e4
    sparse = np.zeros(SHAPE, dtype=np.float32)
    count = sparse.reshape(-1)[::50].size
    sparse.reshape(-1)[::50] = np.abs(standard_normal("sp", (count,)).astype(np.float32)) * 100
    return {
        "gaussian": volume,
        "outliers": outliers,
        "sparse_2percent_nonzero": sparse,
        "integer_valued": np.round(volume / 100),
        "two_values": (volume > 0).astype(np.float32),
    }


@pytest.mark.parametrize("name", list(images()))
def test_percentile_scaling_agrees_with_the_reference(name: str, golden: Callable[[str], Any]) -> None:
    stored = golden("g10_intensity_crop.npz")
    image = images()[name]
    bounds = percentile_bounds(image, 0.05, 99.95)
    assert bounds == pytest.approx(stored[f"{name}.percentiles"], rel=1e-6, abs=1e-4)
    scaled = to_stored(image, bounds) * 2 - 1
    assert np.abs(scaled - stored[f"{name}.output"]).max() <= 1e-5


def test_coinciding_percentiles_span_zero_to_one_unlike_the_reference(golden: Callable[[str], Any]) -> None:
    sparse = np.zeros(SHAPE, dtype=np.float32)
    sparse.reshape(-1)[7], sparse.reshape(-1)[901] = 50, 120
    stored = golden("g10_intensity_crop.npz")
    assert stored["sparse_2_of_7200_nonzero.output"].max() > 100  # the reference passes raw intensities on
    result = to_stored(sparse, percentile_bounds(sparse, 0.05, 99.95))
    assert result.reshape(-1)[7] == pytest.approx(50 / 120)
    assert (result.min(), result.max()) == (0, 1)


@pytest.mark.parametrize("value", [0.0, 37.5])
def test_a_constant_image_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=f"every voxel is {value:g}"):
        percentile_bounds(np.full((4, 4, 4), value, dtype=np.float32), 0.05, 99.95)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_not_finite_are_refused(value: float) -> None:
    image = np.arange(64, dtype=np.float32).reshape(4, 4, 4)
    image[1, 2, 3] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        percentile_bounds(image, 0.05, 99.95)


def test_a_window_gives_the_same_numbers_as_nnunet() -> None:
    schemes = pytest.importorskip("nnunetv2.preprocessing.normalization.default_normalization_schemes")
    image = (standard_normal("ct", (16, 16, 16)) * 400).astype(np.float32)
    properties = as_channel_properties([(-175.0, 250.0)])["0"]
    stock = schemes.CTNormalization(use_mask_for_norm=False, intensityproperties=properties).run(image.copy())
    assert np.array_equal(to_stored(image, (-175.0, 250.0)), stock)
    assert (stock.min(), stock.max()) == (0, 1)


def test_every_channel_has_its_own_bounds() -> None:
    first = standard_normal("c", (8, 8, 8)).astype(np.float32)
    bounds = channel_bounds(np.stack([first, first * 10]), 1, 99)
    assert np.array(bounds[1]) == pytest.approx(np.array(bounds[0]) * 10, rel=1e-5)
