"""Resampling by matrices against scikit-image in double precision and nnU-Net's own functions."""

import numpy as np
import pytest
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet
from skimage.transform import resize

from nnssl.data.resampling import resample_image, resample_labels

SHAPES = [((23, 30, 15), (40, 21, 30)), ((20, 9, 40), (20, 14, 19)), ((1, 9, 7), (4, 14, 3))]
ANY_SPACING = (1.0, 1.0, 1.0)


@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_images_are_those_of_nnunets_cubic_resampling_in_double_precision(old: tuple, new: tuple) -> None:
    image = np.random.default_rng(0).random(old, dtype=np.float32)
    stock = resample_data_or_seg_to_shape(
        image[None].astype(np.float64), new, ANY_SPACING, ANY_SPACING, order=3, force_separate_z=False
    )
    assert np.abs(resample_image(image, new) - stock[0]).max() < 2e-6


@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_shrinking_axes_are_smoothed_as_scikit_image_does(old: tuple, new: tuple) -> None:
    image = np.random.default_rng(1).random(old, dtype=np.float32)
    peer = resize(image.astype(np.float64), new, order=3, mode="edge", anti_aliasing=True)
    assert np.abs(resample_image(image, new, antialias=True) - peer).max() < 2e-6


def test_a_fine_pattern_vanishes_instead_of_aliasing() -> None:
    stripes = np.tile(np.float32([0, 1]), 60)[:, None, None] * np.ones((1, 4, 4), np.float32)
    assert np.ptp(resample_image(stripes, (37, 4, 4))[4:-4]) > 0.5
    assert np.ptp(resample_image(stripes, (37, 4, 4), antialias=True)[4:-4]) < 0.15


def test_an_unchanged_shape_is_left_alone_and_the_range_is_kept() -> None:
    image = np.random.default_rng(2).random((7, 8, 9), dtype=np.float32)
    assert resample_image(image, (7, 8, 9)) is image
    step = np.zeros((8, 8, 8), np.float32)
    step[4:] = 1
    grown = resample_image(step, (21, 8, 8))
    assert (grown.min(), grown.max()) == (0, 1)


@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_labels_win_the_vote_of_nnunets_torch_resampling(old: tuple, new: tuple) -> None:
    blocks = np.random.default_rng(3).integers(-1, 5, tuple(-(-side // 4) for side in old))
    labels = blocks.repeat(4, 0).repeat(4, 1).repeat(4, 2)[tuple(slice(side) for side in old)].astype(np.int16)
    stock = resample_torch_fornnunet(
        labels[None], new, ANY_SPACING, ANY_SPACING, is_seg=True, num_threads=1, force_separate_z=False
    )
    ours = resample_labels(labels, new)
    assert ours.dtype == np.int16
    assert np.mean(ours == stock[0]) > 0.99  # stock votes in float16, which decides some ties by chance


def test_a_label_too_small_for_the_new_grid_disappears_and_others_stay() -> None:
    labels = np.zeros((30, 30, 30), np.int16)
    labels[3, 3, 3], labels[10:20, 10:20, 10:20] = 7, 300
    assert np.unique(resample_labels(labels, (10, 10, 10))).tolist() in ([0, 300], [0, 7, 300])
    assert np.unique(resample_labels(labels, (31, 4, 4))).tolist() == [0, 300]
