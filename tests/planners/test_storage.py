"""Resolution worth storing: hand-computed bounds, and random crops that are never enlarged by a stored limit."""

import math

import pytest
import torch

from nnssl.data.stored_shape import StoredLimit
from nnssl.encoders import encoder_spec
from nnssl.geometry import depth_axis
from nnssl.planners.budgets import plan_pretrain, with_stored_views
from nnssl.planners.storage import stored_limit, threedino_views
from nnssl.pretext.threedino import ThreeDinoConfig
from nnssl.transforms.views import CropRule, random_box
from tests.planners.test_crops import scans

FIRST, SECOND = ((96, 96, 96), (48, 48, 48)), ((112, 112, 112), (64, 64, 64))


def test_the_bounds_of_both_stages_of_3dino() -> None:
    # 96 / sqrt(0.48 * 0.9) = 146.06, 48 / 0.2 = 240; 112 / sqrt(0.48 * 0.9) = 170.4, 64 / 0.2 = 320
    assert stored_limit(threedino_views(*FIRST), 2).voxels == (147, 147, 240)
    assert stored_limit(threedino_views(*SECOND), 2).voxels == (171, 171, 320)


def test_another_policy_and_another_depth_axis() -> None:
    views = [(CropRule(area=(0.25, 1.0), depth=(0.5, 1.0), ratio=(1.0, 1.0)), (32, 64, 16))]
    assert stored_limit(views, 0).voxels == (64, 128, 32)  # 32 / 0.5; 64 and 16 / sqrt(0.25)


@pytest.mark.parametrize("views", [FIRST, SECOND])
def test_no_crop_of_a_capped_volume_has_fewer_voxels_than_its_view(views: tuple) -> None:
    limit = stored_limit(threedino_views(*views), 2)
    shape = limit.shape((512, 512, 700))
    generator = torch.Generator().manual_seed(0)
    for rule, size in threedino_views(*views):
        smallest = [math.inf] * 3
        for _ in range(3000):
            box = random_box(shape, rule, size=size, depth_axis=2, generator=generator)
            smallest = [min(low, part.stop - part.start) for low, part in zip(smallest, box, strict=True)]
        assert all(low >= side for low, side in zip(smallest, size, strict=True))
        if size in (views[0],):
            assert smallest[0] <= 1.03 * size[0]  # the bound is tight: global views in the plane,
        else:
            assert smallest[2] <= 1.03 * size[2]  # local views in depth


def test_the_plane_keeps_its_proportions_and_small_axes_their_voxels() -> None:
    limit = StoredLimit((147, 147, 240), 2)
    assert limit.shape((512, 256, 90)) == (147, 74, 90)  # 147 / 512 for both sides
    assert limit.shape((100, 80, 480)) == (100, 80, 240)
    assert limit.shape((1, 900, 3)) == (1, 147, 3)
    with pytest.raises(ValueError, match="at least 1 voxel"):
        StoredLimit((0, 1, 1), 2)


def test_views_that_are_not_resized_have_no_limit_and_second_stage_views_widen_it() -> None:
    sizes = scans((512, 512, 400), (0.7, 0.7, 1.0))
    words = {"images": 40, "datasets": ("a",), "memory_gb": 24}
    vit = plan_pretrain(encoder_spec("vit_small_16"), sizes, **words)
    wide = with_stored_views(vit, (112, 64)).geometry.limit
    assert wide is not None and wide.voxels == (171, 171, 320)
    assert with_stored_views(vit, None) is vit
    swin = plan_pretrain(encoder_spec("smit_96"), sizes, **words)
    assert swin.geometry.limit is None
    assert with_stored_views(swin, (112, 64)) is swin


def test_shares_of_the_task_decide() -> None:
    config = ThreeDinoConfig(local_depth=(0.4, 0.5))
    assert stored_limit(threedino_views(*FIRST, config), 2).voxels[2] == 192  # 96 / 0.5, no longer 48 / 0.2


def test_the_depth_axis_is_the_coarse_one() -> None:
    assert [depth_axis(spacing) for spacing in ((1, 1, 1), (1, 5, 1), (3.0, 1, 2.5))] == [2, 1, 0]


def test_two_axes_of_equal_spacing_are_the_plane() -> None:
    assert [depth_axis(spacing) for spacing in ((1.5, 1.5, 1), (3.0, 1, 2.99), (0.5, 2, 2))] == [2, 1, 0]
