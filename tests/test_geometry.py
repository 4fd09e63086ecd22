"""Voxel and millimetre arithmetic against hand-computed numbers and nnU-Net's own rounding."""

import numpy as np
import pytest

from nnssl.geometry import ScanSizes, centres_inside, join_sizes, padding_share, whole_tokens


def sizes(shapes: list[tuple[int, ...]], spacings: list[tuple[float, ...]]) -> ScanSizes:
    return ScanSizes(np.array(shapes, dtype=float), np.array(spacings, dtype=float))


def test_hippocampus_at_one_millimetre_holds_twelve_tokens_of_sixteen() -> None:
    assert whole_tokens((36, 50, 35), 16) == (2, 3, 2)


def test_resampled_shapes_round_as_nnunet() -> None:
    resampling = pytest.importorskip("nnunetv2.preprocessing.resampling.default_resampling")
    generator = np.random.default_rng(0)
    scans = ScanSizes(generator.integers(5, 300, (40, 3)).astype(float), generator.uniform(0.4, 6, (40, 3)))
    target = (0.9, 1.1, 2.5)
    expected = [
        resampling.compute_new_shape(shape, spacing, target)
        for shape, spacing in zip(scans.shapes, scans.spacings, strict=True)
    ]
    assert np.array_equal(scans.resampled(target), expected)


def test_padding_is_the_share_of_the_crop_outside_the_image() -> None:
    assert padding_share((16, 16, 16), (8, 16, 40)) == pytest.approx(0.5)
    assert padding_share((16, 16, 16), (20, 16, 16)) == 0


def test_only_token_centres_over_the_image_count() -> None:
    # two tokens of 16 centred on 10 voxels: centres at 8 and 24 of 32, the image spans 11 to 21
    assert centres_inside((32, 16, 16), (10, 16, 16), 16) == 0
    assert centres_inside((32, 16, 16), (20, 16, 16), 16) == 2
    assert centres_inside((48, 32, 16), (100, 100, 10), 16) == 6


def test_union_counts_every_case_once() -> None:
    joined = join_sizes([sizes([(10, 10, 10)] * 3, [(1, 1, 1)] * 3), sizes([(40, 40, 40)], [(2, 2, 2)])])
    assert joined.median_shape((1, 1, 1)).tolist() == [10, 10, 10]


def test_sizes_refuse_an_empty_list() -> None:
    with pytest.raises(ValueError, match="at least one case"):
        ScanSizes(np.zeros((0, 3)), np.zeros((0, 3)))
