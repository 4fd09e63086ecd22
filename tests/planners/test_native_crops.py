"""Spacing and crop of encoders with a spacing of their own: hand-computed cases and properties."""

import numpy as np
import pytest

from nnssl.encoders import encoder_spec
from nnssl.geometry import ScanSizes
from nnssl.planners.budgets import native_tokens, smallest_budget, wanted_by
from nnssl.planners.crops import TOKENS_WANTED, nnunet_spacing, refined_spacing
from nnssl.planners.native_crops import Wanted, is_too_small, native_pretrain_crop, nearest_grid, wanted_crop
from nnssl.recipe import RECIPES
from tests.planners.test_crops import random_scans, scans

SMIT = encoder_spec("smit_96")
NATIVE = Wanted((1.5, 1.5, 2.0), (96, 96, 96), "encoder")


def test_a_large_scan_gets_the_native_crop_at_the_native_spacing() -> None:
    plan = wanted_crop(scans((300, 300, 300), (1.0, 1.0, 1.0)), NATIVE, SMIT, 27)
    assert (plan.spacing_mm, plan.crop, plan.rule) == ((1.5, 1.5, 2.0), (96, 96, 96), "encoder")
    assert plan.median_shape == (200, 200, 150)


def test_ten_thick_slices_take_the_nearest_multiples() -> None:
    plan = wanted_crop(scans((216, 256, 10), (1.5, 1.5, 10.0)), NATIVE, SMIT, 27)
    assert plan.median_shape == (216, 256, 50)  # 100 mm
    assert plan.crop == (96, 96, 64)  # nearer to 50 than 32 is
    assert plan.padding == pytest.approx(14 / 64)


def test_almost_three_multiples_are_three() -> None:
    plan = wanted_crop(scans((95, 102, 70), (1.5, 1.5, 2.0)), NATIVE, SMIT, 27)
    assert plan.crop == (96, 96, 64)


HIPPOCAMPUS = scans((35, 50, 36), (1.0, 1.0, 1.0))  # 23 x 33 x 18 voxels at 1.5 x 1.5 x 2 mm; half of 96 is 48


@pytest.mark.parametrize("name", ["swin_tiny", "smit_96", "resenc_l"])
def test_a_scan_shorter_than_half_of_the_crop_keeps_nnunets_spacing_under_a_pyramid(name: str) -> None:
    spec = encoder_spec(name)
    wanted = wanted_by(spec, None, None)
    assert wanted is not None and is_too_small(HIPPOCAMPUS, wanted)
    plan = wanted_crop(HIPPOCAMPUS, wanted, spec, native_tokens(spec))
    assert (plan.spacing_mm, plan.crop, plan.rule) == ((1.0, 1.0, 1.0), (32, 64, 32), "small")
    stored = native_pretrain_crop(HIPPOCAMPUS, wanted, spec, native_tokens(spec))
    assert (stored.spacing_mm, stored.global_crop) == (plan.spacing_mm, plan.crop)
    assert min(stored.local_crop) >= 32


def test_small_scans_are_refined_no_further_than_half_of_the_crop_asks_for() -> None:
    plan = wanted_crop(scans((192, 144, 88), (0.625, 0.625, 0.625)), NATIVE, SMIT, 27)
    assert plan.spacing_mm == pytest.approx((0.86, 0.86, 1.15), abs=0.02)  # 55 mm / 1.15 mm = 48 voxels = 96 / 2
    assert plan.median_shape[2] == 48
    assert plan.crop == (128, 96, 64)  # covers the scan with 24 of 27 cells


def test_a_short_axis_that_nnunet_stores_no_finer_refines_no_other_axis() -> None:
    slices = scans((300, 300, 6), (0.7, 0.7, 10.0))  # 60 mm = 30 voxels of 2 mm
    plan = wanted_crop(slices, NATIVE, SMIT, 27)
    assert (plan.spacing_mm, plan.rule) == ((1.5, 1.5, 2.0), "small")
    assert plan.crop[2] == 32


def test_a_scan_smaller_than_one_multiple_is_refined_to_fill_it_but_at_most_twice() -> None:
    tiny = wanted_crop(scans((24, 30, 24), (1.0, 1.0, 1.0)), NATIVE, SMIT, 27)
    assert tiny.spacing_mm == pytest.approx((0.75,) * 3, abs=0.015)
    assert (tiny.crop, tiny.padding) == ((32, 32, 32), 0)
    minute = wanted_crop(scans((10, 10, 10), (1.0, 1.0, 1.0)), NATIVE, SMIT, 27)
    assert minute.spacing_mm == pytest.approx((0.5,) * 3)


def test_a_plain_transformer_refines_small_scans_to_its_tokens() -> None:
    primus = encoder_spec("primus_s")
    plan = wanted_crop(HIPPOCAMPUS, Wanted((1.0, 1.0, 1.0), (160,) * 3, "encoder"), primus, 8000)
    assert plan.spacing_mm == refined(HIPPOCAMPUS, 8)
    assert plan.tokens >= TOKENS_WANTED


def refined(sizes: ScanSizes, patch: int) -> tuple[float, ...]:
    return tuple(refined_spacing(sizes, nnunet_spacing(sizes), patch))


def test_a_spacing_from_the_command_line_is_taken_however_small_the_scan() -> None:
    plan = wanted_crop(HIPPOCAMPUS, Wanted((1.2, 1.2, 1.2), (96,) * 3, "flag"), SMIT, 27)
    assert (plan.spacing_mm, plan.crop, plan.rule) == ((1.2, 1.2, 1.2), (32, 32, 32), "flag")


def test_a_residual_encoder_gets_two_cells_because_instance_norm_needs_them() -> None:
    spec, sizes = encoder_spec("resenc_l"), scans((30, 34, 30), (1.0, 1.0, 1.0))
    wanted = wanted_by(spec, None, None)
    assert wanted is not None
    plan = native_pretrain_crop(sizes, wanted, spec, 125)
    assert plan.global_crop == plan.local_crop == (32, 64, 32)
    assert wanted_crop(sizes, NATIVE, SMIT, 27).crop == (32, 32, 32)
    assert smallest_budget(spec) == 2 and smallest_budget(SMIT) == 1


@pytest.mark.parametrize("name", ["swin_tiny", "smit_128", "smit_repo", "primus_s", "resenc_l"])
@pytest.mark.parametrize("seed", range(6))
def test_every_crop_is_at_most_the_multiples_nearest_to_the_median_scan(name: str, seed: int) -> None:
    spec, sizes = encoder_spec(name), random_scans(seed)
    wanted = wanted_by(spec, None, None)
    assert wanted is not None
    plan = wanted_crop(sizes, wanted, spec, native_tokens(spec))
    multiple = spec.crop_multiple
    assert all(side % multiple == 0 for side in plan.crop)
    nearest = multiple * nearest_grid(plan.median_shape, multiple)
    assert all(side <= most for side, most in zip(plan.crop, nearest, strict=True)) or plan.tokens == 2
    assert plan.tokens <= native_tokens(spec)
    finest = np.minimum(wanted.spacing_mm, refined(sizes, multiple)) / 2
    assert all(finest <= np.array(plan.spacing_mm) + 1e-9)
    assert all(np.array(plan.spacing_mm) <= np.array(wanted.spacing_mm) + 1e-9)


def test_the_nearest_multiples_round_halves_up_and_are_never_none() -> None:
    assert nearest_grid((48, 47.9, 3), 32).tolist() == [2, 1, 1]


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
