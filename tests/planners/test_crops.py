"""Spacing and crop rules: hand-computed cases, nnU-Net's own rule as a peer, and properties over random data sets."""

import numpy as np
import pytest

from nnssl.geometry import ScanSizes, token_count
from nnssl.planners.crops import (
    FINEST_FACTOR,
    TOKENS_WANTED,
    finetune_crop,
    grow_grid,
    mean_padding,
    nnunet_spacing,
    pretrain_crop,
)


def scans(shape: tuple[int, ...], spacing: tuple[float, ...], count: int = 5) -> ScanSizes:
    return ScanSizes(np.tile(np.array(shape, dtype=float), (count, 1)), np.tile(np.array(spacing), (count, 1)))


def random_scans(seed: int) -> ScanSizes:
    generator = np.random.default_rng(seed)
    anisotropy = np.array([1, 1, generator.choice([1, 2, 5])])
    spacings = generator.uniform(0.5, 2) * anisotropy * generator.uniform(0.8, 1.2, (9, 3))
    return ScanSizes(generator.integers(8, 200, (9, 3)).astype(float), spacings)


@pytest.mark.parametrize("seed", range(8))
def test_base_spacing_is_that_of_nnunet(seed: int) -> None:
    module = pytest.importorskip("nnunetv2.experiment_planning.experiment_planners.default_experiment_planner")
    sizes = random_scans(seed)
    stock = object.__new__(module.ExperimentPlanner)
    stock.overwrite_target_spacing, stock.anisotropy_threshold = None, 3
    stock.dataset_fingerprint = {"spacings": sizes.spacings.tolist(), "shapes_after_crop": sizes.shapes.tolist()}
    assert nnunet_spacing(sizes) == pytest.approx(stock.determine_fullres_target_spacing())


def test_hippocampus_is_refined_until_the_median_scan_holds_enough_tokens() -> None:
    plan = finetune_crop(scans((36, 50, 35), (1.0, 1.0, 1.0)), 8, 512)
    assert plan.crop == (48, 64, 48)  # 6 x 8 x 6 tokens
    assert plan.tokens == plan.centres == 288
    assert plan.padding == 0
    assert plan.refined == pytest.approx((47.5 / 35,) * 3, abs=0.005)  # 35 mm round up to 48 voxels


def test_a_large_scan_keeps_nnunets_spacing_and_gets_the_native_crop() -> None:
    plan = finetune_crop(scans((300, 300, 200), (0.8, 0.8, 0.8)), 16, 216)
    assert plan.spacing_mm == (0.8, 0.8, 0.8)
    assert plan.crop == (96, 96, 96)


def test_ten_thick_slices_become_one_whole_token() -> None:
    plan = finetune_crop(scans((216, 256, 10), (1.5, 1.5, 10.0)), 16, 216)
    assert plan.spacing_mm == pytest.approx((1.5, 1.5, 6.25))
    assert plan.median_shape == (216, 256, 16)
    assert plan.crop[2] == 16
    assert plan.padding == 0


def test_the_crop_is_cubic_in_millimetres_where_the_scan_allows() -> None:
    plan = finetune_crop(scans((512, 512, 200), (1.0, 1.0, 4.0)), 16, 216)
    assert plan.crop == (160, 160, 32)  # 160 x 160 x 128 mm, 200 tokens; 3 x 64 mm deep leaves room for 8 x 8


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("patch", "budget"), [(8, 512), (16, 216)])
def test_every_plan_is_whole_tokens_inside_the_median_scan_and_the_budget(seed: int, patch: int, budget: int) -> None:
    sizes = random_scans(seed)
    plan = finetune_crop(sizes, patch, budget)
    assert all(side % patch == 0 for side in plan.crop)
    assert plan.tokens <= budget
    assert all(side <= max(patch, voxels) for side, voxels in zip(plan.crop, plan.median_shape, strict=True))
    assert max(plan.refined) <= FINEST_FACTOR**2 + 1e-6  # common factor and coarse axis
    assert min(plan.refined) >= 1 - 1e-9
    assert 0 <= mean_padding(sizes, plan) < 1


def test_refinement_is_bounded_where_tokens_never_suffice() -> None:
    plan = finetune_crop(scans((20, 20, 20), (1.0, 1.0, 1.0)), 16, 216)
    assert max(plan.refined) <= FINEST_FACTOR + 1e-9
    assert plan.tokens < TOKENS_WANTED


def test_a_given_spacing_is_not_refined() -> None:
    plan = finetune_crop(scans((36, 50, 35), (1.0, 1.0, 1.0)), 8, 512, spacing_mm=(1.0, 1.0, 1.0))
    assert plan.spacing_mm == (1.0, 1.0, 1.0)
    assert plan.crop == (32, 48, 32)


def test_the_shortest_axis_of_a_grid_grows_first() -> None:
    assert grow_grid((9, 9, 9), (1.0, 1.0, 1.0), 216) == (6, 6, 6)
    assert grow_grid((9, 9, 9), (1.0, 1.0, 4.0), 64) == (6, 5, 2)
    assert grow_grid((2, 9, 9), (1.0, 1.0, 1.0), 64) == (2, 6, 5)


def test_pretraining_views_of_a_cubic_scan_are_those_of_the_paper() -> None:
    sizes = scans((200, 200, 200), (1.0, 1.0, 1.0))
    small, large = pretrain_crop(sizes, 16, 216), pretrain_crop(sizes, 16, 343)
    assert (small.global_crop, small.local_crop) == ((96,) * 3, (48,) * 3)
    assert (large.global_crop, large.local_crop) == ((112,) * 3, (64,) * 3)


def test_storage_is_what_crops_can_show_and_never_finer_than_the_scans() -> None:
    plan = pretrain_crop(scans((512, 512, 400), (0.7, 0.7, 1.0)), 16, 216)
    assert (plan.global_crop, plan.local_crop) == ((96, 96, 96), (48, 48, 48))
    assert plan.limit is not None and (plan.limit.voxels, plan.limit.depth_axis) == ((147, 147, 240), 2)
    assert plan.median_shape == (147, 147, 240)
    assert np.allclose(plan.coarsened, (512 / 147, 512 / 147, 400 / 240))
    small = pretrain_crop(scans((36, 50, 35), (1.0, 1.0, 1.0)), 8, 512)
    assert small.spacing_mm == (1.0, 1.0, 1.0)
    assert small.global_crop == (48, 64, 48)


@pytest.mark.parametrize("seed", range(8))
def test_local_views_are_whole_tokens_and_not_larger_than_global_ones(seed: int) -> None:
    plan = pretrain_crop(random_scans(seed), 16, 216)
    assert token_count(plan.global_crop) <= 216 * 16**3
    for local, whole in zip(plan.local_crop, plan.global_crop, strict=True):
        assert local % 16 == 0
        assert min(32, whole) <= local <= whole
