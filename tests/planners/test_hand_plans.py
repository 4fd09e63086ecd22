"""Whole plans of seven kinds of data set, worked out by hand from the rules in docs/planning.md."""

import numpy as np
import pytest

from nnssl.encoders import encoder_spec
from nnssl.geometry import ScanSizes
from nnssl.planners.budgets import FinetunePlan, PretrainPlan, plan_finetune, plan_pretrain
from nnssl.planners.network import choose_network
from nnssl.recipe import RECIPES

AMPLE_GB = 1000.0  # memory decides nothing


def scans(shape: tuple[int, int, int], spacing: tuple[float, float, float], cases: int) -> ScanSizes:
    return ScanSizes(np.tile(np.array(shape, dtype=float), (cases, 1)), np.tile(np.array(spacing), (cases, 1)))


HIPPOCAMPUS = scans((35, 50, 36), (1.0, 1.0, 1.0), 208)
CINE = scans((216, 256, 10), (1.5, 1.5, 10.0), 100)
HEAD_NECK = scans((512, 512, 100), (1.0, 1.0, 3.0), 115)
BRAIN = scans((140, 170, 140), (1.0, 1.0, 1.0), 50)
WHOLE_BODY = scans((512, 512, 1000), (1.4, 1.4, 1.0), 20)


def finetuned(sizes: ScanSizes, encoder: str, channels: int = 1) -> FinetunePlan:
    network = choose_network(encoder_spec(encoder), input_channels=channels, num_classes=3)
    return plan_finetune(network, sizes, memory_gb=AMPLE_GB)


def pretrained(sizes: ScanSizes, encoder: str, channels: int = 1) -> PretrainPlan:
    images = len(sizes.shapes) * channels
    return plan_pretrain(encoder_spec(encoder), sizes, images=images, datasets=("a",), memory_gb=AMPLE_GB)


def test_hippocampus_on_a_vit_is_refined_to_whole_tokens() -> None:
    # 1 mm: 4 x 6 x 4 = 96 tokens of 8 voxels, too few. 1.27 times finer: 44 x 64 x 46 voxels = 5 x 8 x 5 = 200. Up to a
    # tenth finer, 1.36 covers most: 48 x 68 x 49 voxels = 6 x 8 x 6 tokens, 92 % (1.27: 79 %, 1.32: 84 %).
    plan = finetuned(HIPPOCAMPUS, "vit_tiny_8")
    assert plan.geometry.spacing_mm == pytest.approx((1 / 1.36,) * 3)
    assert plan.geometry.median_shape == (48, 68, 49)
    assert plan.geometry.crop == (48, 64, 48)
    assert plan.batch_size == 8  # 5 % of 208 scans of 48 x 68 x 49 are 11 crops; 8 is 3DINO's


def test_hippocampus_on_a_swin_is_kept_at_its_own_spacing() -> None:
    # at 1.5 x 1.5 x 2 mm it has 23 x 33 x 18 voxels, less than half of 96; nnU-Net's 1 mm is the finest allowed
    plan = finetuned(HIPPOCAMPUS, "smit_96")
    assert plan.geometry.spacing_mm == (1.0, 1.0, 1.0)
    assert plan.geometry.crop == (32, 64, 32)  # 35, 50, 36 voxels to the nearest multiple of 32


def test_ten_slices_of_cardiac_cine_become_one_token_deep() -> None:
    # 10 voxels of 10 mm: 0.6 tokens of 16; at 6.25 mm they are one. In the plane 13 x 16 tokens: 208 of 216 allowed
    plan = finetuned(CINE, "vit_small_16")
    assert plan.geometry.spacing_mm == (1.5, 1.5, 6.25)
    assert plan.geometry.crop == (208, 256, 16)
    assert plan.geometry.padding == 0
    assert plan.batch_size == 5  # 5 % of 100 scans of 216 x 256 x 16 voxels are 5.2 crops


def test_cardiac_cine_on_a_swin_gets_its_two_millimetres_deep() -> None:
    plan = finetuned(CINE, "smit_96")
    assert plan.geometry.spacing_mm == (1.5, 1.5, 2.0)
    assert plan.geometry.median_shape == (216, 256, 50)  # 50 is more than half of 96
    assert plan.geometry.crop == (96, 96, 64)  # 50 voxels are nearer to 64 than to 32
    assert plan.geometry.padding == pytest.approx(14 / 64)


def test_head_neck_ct_has_a_crop_that_is_flat_in_voxels_and_nearly_cubic_in_mm() -> None:
    # tokens of 16 x 16 x 48 mm, grown by the shortest side: 3 x 3 x 1, 6 x 6 x 2, then 9 x 8 x 3 = 216 tokens
    plan = finetuned(HEAD_NECK, "vit_small_16")
    assert plan.geometry.spacing_mm == (1.0, 1.0, 3.0)  # 3 mm are not more than 3 times 1 mm
    assert plan.geometry.crop == (144, 128, 48)  # 144 x 128 x 144 mm
    assert plan.batch_size == 8
    assert finetuned(HEAD_NECK, "smit_96").geometry.crop == (96, 96, 96)  # of 341 x 341 x 150 voxels


def test_a_brain_of_two_channels_is_read_one_channel_at_a_time_by_a_vit() -> None:
    plan = finetuned(BRAIN, "vit_small_16", channels=2)
    assert plan.geometry.crop == (96, 96, 96)  # 8 x 10 x 8 tokens at 1 mm: 6^3 = 216 of them
    assert (plan.network.channels, plan.network.passes) == ("mix", 2)
    pretrain = pretrained(BRAIN, "vit_small_16", channels=2)
    assert pretrain.recipe.batch_size == 100  # every channel is an image: 50 scans, at most one draw of each
    assert pretrain.recipe.steps == 1_000  # 648 passes of one step each would be too few


def test_a_brain_of_two_channels_is_read_at_once_by_a_swin() -> None:
    plan = finetuned(BRAIN, "smit_96", channels=2)
    assert plan.geometry.median_shape == (93, 113, 70)  # at 1.5 x 1.5 x 2 mm
    assert plan.geometry.crop == (96, 96, 64)
    assert (plan.network.channels, plan.network.passes) == ("replicate", 1)


def test_a_thousand_slices_change_nothing_but_the_proportions_of_the_views() -> None:
    # tokens of 22.4 x 22.4 x 16 mm, grown by the shortest side to 6 x 5 x 7 = 210; a 211th to 216th fits on no axis
    plan = finetuned(WHOLE_BODY, "vit_small_16")
    assert plan.geometry.spacing_mm == (1.4, 1.4, 1.0)
    assert plan.geometry.crop == (96, 80, 112)
    pretrain = pretrained(WHOLE_BODY, "vit_small_16").geometry  # shares of 716.8 x 716.8 x 1000 mm: the same grid
    assert pretrain.global_crop == (96, 80, 112)
    assert pretrain.local_crop == (48, 48, 64)  # 3 x 3 x 4 tokens
    assert np.prod(pretrain.median_shape) < 0.02 * 512 * 512 * 1000  # far less is stored than was scanned
    assert finetuned(WHOLE_BODY, "smit_96").geometry.crop == (96, 96, 96)


def test_a_single_case_is_planned_like_many() -> None:
    plan, many = (finetuned(scans((128, 128, 128), (1.0, 1.0, 1.0), cases), "vit_small_16") for cases in (1, 300))
    assert plan.geometry == many.geometry
    assert plan.geometry.crop == (96, 96, 96)
    assert (plan.batch_size, many.batch_size) == (2, 8)  # 5 % of one scan is 0.1 crops; nnU-Net's smallest batch is 2


@pytest.mark.parametrize("cases", range(1, 9))
def test_a_handful_of_subjects_gets_the_smallest_batches_and_enough_steps(cases: int) -> None:
    sizes = scans((128, 128, 128), (1.0, 1.0, 1.0), cases)
    pretrain = pretrained(sizes, "vit_small_16").recipe
    assert finetuned(sizes, "vit_small_16").batch_size == 2
    assert pretrain.batch_size == max(2, cases)  # one draw per image; two volumes at least
    assert pretrain.steps == 1_000  # 648 draws per image are 648 steps or fewer


@pytest.mark.parametrize(("cases", "iterations"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2), (7, 2), (8, 3)])
def test_an_epoch_of_a_few_subjects_is_one_pass_over_those_that_are_trained_on(cases: int, iterations: int) -> None:
    # four of five folds are trained on: 1 2 3 4 4 5 6 7 of 1 ... 8 scans, three at a time
    network = choose_network(encoder_spec("smit_96"), input_channels=1, num_classes=3, recipe=RECIPES["smit_few"])
    sizes = scans((300, 300, 200), (1.0, 1.0, 1.0), cases)
    plan = plan_finetune(network, sizes, memory_gb=AMPLE_GB, recipe=RECIPES["smit_few"])
    assert plan.recipe.iterations_per_epoch == iterations
