"""Spacing and crop of encoders with a spacing of their own: hand-computed cases and properties."""

import numpy as np
import pytest

from nnssl.encoders import encoder_spec
from nnssl.planners.budgets import native_tokens, wanted_by
from nnssl.planners.crops import TOKENS_WANTED
from nnssl.planners.native_crops import Wanted, is_too_small, native_pretrain_crop, wanted_crop
from nnssl.recipe import RECIPES
from tests.planners.test_crops import random_scans, scans

SMIT = encoder_spec("smit_96")
NATIVE = Wanted((1.5, 1.5, 2.0), (96, 96, 96), "encoder")


def test_a_large_scan_gets_the_native_crop_at_the_native_spacing() -> None:
    plan = wanted_crop(scans((300, 300, 300), (1.0, 1.0, 1.0)), NATIVE, SMIT, 27)
    assert (plan.spacing_mm, plan.crop, plan.rule) == ((1.5, 1.5, 2.0), (96, 96, 96), "encoder")
    assert plan.median_shape == (200, 200, 150)


def test_ten_thick_slices_clip_the_crop_to_one_multiple() -> None:
    plan = wanted_crop(scans((216, 256, 10), (1.5, 1.5, 10.0)), NATIVE, SMIT, 27)
    assert plan.median_shape == (216, 256, 50)  # 100 mm
    assert plan.crop == (96, 96, 32)


def test_a_scan_shorter_than_half_of_the_crop_falls_back_on_the_token_rule() -> None:
    hippocampus = scans((36, 50, 35), (1.0, 1.0, 1.0))  # 24 x 33 x 18 voxels at 1.5 x 1.5 x 2 mm, half of 96 is 48
    assert is_too_small(hippocampus, NATIVE)
    plan = wanted_crop(hippocampus, NATIVE, SMIT, 27)
    assert plan.rule == "small"
    assert max(plan.spacing_mm) < 0.5
    assert np.prod(np.floor_divide(plan.median_shape, 16)) >= TOKENS_WANTED  # tokens of 16 voxels, not of 32
    assert all(side % 32 == 0 and side <= voxels for side, voxels in zip(plan.crop, plan.median_shape, strict=True))


def test_a_spacing_from_the_command_line_is_taken_however_small_the_scan() -> None:
    plan = wanted_crop(scans((36, 50, 35), (1.0, 1.0, 1.0)), Wanted((1.0, 1.0, 1.0), (96,) * 3, "flag"), SMIT, 27)
    assert (plan.spacing_mm, plan.crop, plan.rule) == ((1.0, 1.0, 1.0), (32, 32, 32), "flag")


@pytest.mark.parametrize("name", ["swin_tiny", "smit_128", "smit_repo", "primus_s", "resenc_l"])
@pytest.mark.parametrize("seed", range(6))
def test_every_crop_is_whole_multiples_inside_the_median_scan(name: str, seed: int) -> None:
    spec, sizes = encoder_spec(name), random_scans(seed)
    wanted = wanted_by(spec, None, None)
    assert wanted is not None
    plan = wanted_crop(sizes, wanted, spec, native_tokens(spec))
    multiple = spec.crop_multiple
    assert all(side % multiple == 0 for side in plan.crop)
    assert all(side <= max(multiple, voxels) for side, voxels in zip(plan.crop, plan.median_shape, strict=True))
    assert plan.tokens <= native_tokens(spec)


def test_pretraining_views_are_not_resized_and_local_ones_half_as_long() -> None:
    large = native_pretrain_crop(scans((400, 400, 400), (1.0, 1.0, 1.0)), NATIVE, SMIT, 27)
    assert (large.spacing_mm, large.global_crop, large.local_crop) == ((1.5, 1.5, 2.0), (96,) * 3, (64,) * 3)
    tiny = encoder_spec("swin_tiny")
    wanted = wanted_by(tiny, None, None)
    assert wanted is not None
    small = native_pretrain_crop(scans((400, 400, 400), (1.0, 1.0, 1.0)), wanted, tiny, 8)
    assert (small.global_crop, small.local_crop) == ((64,) * 3, (32,) * 3)


def test_the_flag_beats_the_recipe_and_the_recipe_the_encoder() -> None:
    vit, repository, recipe = encoder_spec("vit_small_16"), encoder_spec("smit_repo"), RECIPES["smit_many"]
    assert wanted_by(vit, None, None) is None
    assert wanted_by(vit, None, RECIPES["3dino"]) is None
    assert wanted_by(repository, None, None) == Wanted((2.0, 2.0, 2.0), (96, 96, 96), "encoder")
    assert wanted_by(repository, None, recipe) == Wanted((1.5, 1.5, 2.0), (96, 96, 96), "recipe")
    assert wanted_by(repository, (1.0, 1.0, 1.0), recipe) == Wanted((1.0, 1.0, 1.0), (96, 96, 96), "flag")
