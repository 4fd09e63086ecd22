"""The crop to nonzero is nnU-Net's, found without its iterative hole filling."""

import copy

import numpy as np
import pytest
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero as stock_crop
from scipy.ndimage import gaussian_filter

from nnssl.data.cropping import crop_to_nonzero


def body(seed: int, channels: int = 1) -> np.ndarray:
    """Blobs with holes, some of them at the border of the image."""
    generator = np.random.default_rng(seed)
    images = gaussian_filter(generator.normal(size=(channels, 20, 24, 18)), (0, 2, 2, 2))
    return np.where(images > 0.02, images, 0).astype(np.float32)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("labelled", [True, False])
def test_crop_box_and_outside_are_those_of_nnunet(seed: int, labelled: bool) -> None:
    images = body(seed, channels=1 + seed % 2)
    labels = np.random.default_rng(seed).integers(0, 3, (1, *images.shape[1:])).astype(np.int16) if labelled else None
    expected = stock_crop(images.copy(), copy.deepcopy(labels))
    found = crop_to_nonzero(images.copy(), copy.deepcopy(labels))
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(found[1], expected[1])
    assert [tuple(ends) for ends in found[2]] == [tuple(ends) for ends in expected[2]]
    assert (found[1] == -1).any()


def test_a_box_full_of_body_has_no_outside() -> None:
    images = np.zeros((1, 9, 9, 9), np.float32)
    images[0, 2:7, 2:7, 2:7] = 1
    images[0, 4, 4, 4] = 0
    _, labels, box = crop_to_nonzero(images, None)
    assert (labels.shape, labels.any(), box) == ((1, 5, 5, 5), False, [[2, 7]] * 3)
