"""Augmented volumes stay in [0, 1], thick slices are turned within the slice, sides of the body are respected."""

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnssl.trainers.augmentation import (
    AxisFirst,
    OnZScores,
    coarse_axis,
    for_stored_range,
    front,
    has_left_right_pairs,
    mirror_axes,
)


class Record(ImageOnlyTransform):
    """Keeps what it is given, and scales it."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.seen: list[torch.Tensor] = []

    def _apply_to_image(self, img: torch.Tensor, **_: object) -> torch.Tensor:
        self.seen.append(img.clone())
        return img * self.factor


def sample(shape: tuple[int, ...] = (1, 20, 24, 16)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(shape, generator=generator).clamp_min(0.2)
    image[:, :4] = 0
    return {"image": image, "segmentation": (image[:1] > 0.6).to(torch.int16)}


def stock(crop: list[int], dummy: bool = False) -> ComposeTransforms:
    return nnUNetTrainer.get_training_transforms(crop, (-0.5, 0.5), None, (0, 1, 2), dummy)


def test_intensity_transforms_see_z_scores_of_the_body() -> None:
    record = Record()
    data = sample((2, 10, 12, 8))
    before = data["image"].clone()
    after = OnZScores([record])(**data)["image"]
    for channel, original in zip(record.seen[0], before, strict=True):
        inside = channel[original > 0]
        assert inside.mean().item() == pytest.approx(0, abs=1e-5)
        assert inside.std().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(after, before)


def test_result_is_clipped_to_the_stored_range() -> None:
    after = OnZScores([Record(100.0)])(**sample())["image"]
    assert after.min() == 0 and after.max() == 1


def test_a_crop_of_background_survives() -> None:
    data = {"image": torch.zeros(1, 8, 8, 8), "segmentation": torch.zeros(1, 8, 8, 8)}
    assert torch.equal(OnZScores([Record(2.0)])(**data)["image"], torch.zeros(1, 8, 8, 8))


def test_all_of_nnunets_random_transforms_run_on_z_scores() -> None:
    transforms = for_stored_range(stock([16, 16, 16])).transforms
    wrapped = [step for step in transforms if isinstance(step, OnZScores)]
    assert len(wrapped) == 1
    assert not any(isinstance(step, RandomTransform) for step in transforms)
    assert len(wrapped[0].transforms.transforms) == sum(
        isinstance(s, RandomTransform) for s in stock([16] * 3).transforms
    )


def test_augmented_volumes_stay_in_the_stored_range() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    transforms = for_stored_range(stock([16, 16, 16]))
    for _ in range(20):
        image = transforms(**sample((1, 24, 24, 24)))["image"]
        assert image.shape == (1, 16, 16, 16)
        assert image.min() >= 0 and image.max() <= 1 and torch.isfinite(image).all()


def test_thick_slices_stay_apart_whichever_axis_is_coarse() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    slices = torch.arange(1, 7).div(10).reshape(1, 1, 1, 6).expand(1, 30, 30, 6)
    crop = [16, 20, 6]
    order = front(2)
    transforms = AxisFirst(2, ComposeTransforms(stock([crop[index] for index in order], dummy=True).transforms[:3]))
    for _ in range(10):
        data = {"image": slices.clone(), "segmentation": torch.ones(1, 30, 30, 6, dtype=torch.int16)}
        image = transforms(**data)["image"]
        assert list(image.shape) == [1, *crop]
        for number in range(6):
            value = pytest.approx((number + 1) / 10, abs=1e-3)  # mixing slices would give values in between
            assert image[..., number].max().item() == value
            assert image[..., number].median().item() == value


@pytest.mark.parametrize(
    ("spacing", "expected"), [((1.0, 1.0, 1.0), None), ((1.5, 1.5, 10.0), 2), ((9.0, 1.0, 1.0), 0), ((1, 1, 3), None)]
)
def test_coarse_axis_comes_from_the_spacing(spacing: tuple[float, ...], expected: int | None) -> None:
    assert coarse_axis(spacing) == expected


def test_front_puts_an_axis_first() -> None:
    assert [front(axis) for axis in range(3)] == [(0, 1, 2), (1, 0, 2), (2, 0, 1)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["background", "Brainstem", "RightParotid", "LeftParotid"], True),
        (["kidney_left", "kidney_right"], True),
        (["Lung_L", "Lung_R"], True),
        (["LEFT LUNG", "RIGHT LUNG"], True),
        (["lung_upper_lobe_left", "lung_upper_lobe_right"], True),
        (["background", "LeftAtrium"], False),
        (["RV", "MYO", "LV"], False),
        (["Anterior", "Posterior"], False),
        (["leftover", "rightover"], False),
    ],
)
def test_only_pairs_of_sides_count(names: list[str], expected: bool) -> None:
    assert has_left_right_pairs(names) is expected
    assert mirror_axes(names) == ((1, 2) if expected else (0, 1, 2))
