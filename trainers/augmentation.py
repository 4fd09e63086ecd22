"""nnU-Net's augmentation for stored [0, 1] volumes in (X, Y, Z): z-score range, coarse axis and left-right names."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from torch import Tensor

COARSE_RATIO = 3  # nnU-Net's ANISO_THRESHOLD
LEAST_DEVIATION = 0.02  # of stored intensities; a crop of nothing but background has none
_OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")  # RightParotid, kidney_left, Lung_L


class OnZScores(BasicTransform):
    """Run intensity transforms on z-scores, where their numbers were chosen; clip the result to [0, 1].

    Mean and deviation are taken per channel over the voxels above 0 (background) of the crop.
    """

    def __init__(self, transforms: Sequence[BasicTransform]) -> None:
        super().__init__()
        self.transforms = ComposeTransforms(list(transforms))

    def apply(self, data_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        image: Tensor = data_dict["image"]
        statistics = [_mean_and_deviation(channel) for channel in image]
        shape = (-1, *[1] * (image.ndim - 1))
        mean = torch.tensor([mean for mean, _ in statistics], dtype=image.dtype).reshape(shape)
        deviation = torch.tensor([deviation for _, deviation in statistics], dtype=image.dtype).reshape(shape)
        data_dict["image"] = (image - mean) / deviation
        data_dict = self.transforms(**data_dict)
        data_dict["image"] = (data_dict["image"] * deviation + mean).clamp_(0, 1)
        return data_dict


class AxisFirst(BasicTransform):
    """Run transforms with one spatial axis moved to the front, where nnU-Net expects the coarse axis."""

    def __init__(self, axis: int, transform: BasicTransform) -> None:
        super().__init__()
        self.axis = axis
        self.transform = transform

    def apply(self, data_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        for name in ("image", "segmentation"):
            data_dict[name] = data_dict[name].movedim(self.axis + 1, 1).contiguous()
        data_dict = self.transform(**data_dict)
        for name in ("image", "segmentation"):
            data_dict[name] = data_dict[name].movedim(1, self.axis + 1).contiguous()
        return data_dict


def for_stored_range(stock: ComposeTransforms) -> ComposeTransforms:
    """nnU-Net's training transforms with the intensity part (its RandomTransforms) on z-scores."""
    steps = list(stock.transforms)
    random = [index for index, step in enumerate(steps) if isinstance(step, RandomTransform)]
    if not random:
        return stock
    if random != list(range(random[0], random[-1] + 1)):
        raise RuntimeError("nnU-Net's intensity transforms are no longer in one row; nnssl needs nnunetv2>=2.8.1,<2.9")
    return ComposeTransforms(
        [*steps[: random[0]], OnZScores(steps[random[0] : random[-1] + 1]), *steps[random[-1] + 1 :]]
    )


def coarse_axis(spacing: Sequence[float]) -> int | None:
    """The axis of thick slices (voxel more than 3 times as long as the finest), None where there is none."""
    axis = max(range(len(spacing)), key=lambda index: spacing[index])
    return axis if spacing[axis] > COARSE_RATIO * min(spacing) else None


def front(axis: int) -> tuple[int, int, int]:
    """The order of (X, Y, Z) that puts `axis` first and keeps the others in order."""
    first, second = (other for other in range(3) if other != axis)
    return axis, first, second


def has_left_right_pairs(names: Iterable[str]) -> bool:
    """Whether two labels differ only by their side (LeftParotid and RightParotid, Lung_L and Lung_R).

    "LeftAtrium" alone is no pair, and "LV" with "RV" is none: a mirrored heart is told from its walls.
    """
    words = {tuple(word.lower() for word in _WORD.findall(name)) for name in names}
    return any(other in words for name in words for other in _other_side(name))


def mirror_axes(label_names: Iterable[str]) -> tuple[int, ...]:
    """Axes of (X, Y, Z) that may be mirrored: X (left-right in RAS) only where no label has a side."""
    return (1, 2) if has_left_right_pairs(label_names) else (0, 1, 2)


def _other_side(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [
        (*words[:index], _OTHER_SIDE[word], *words[index + 1 :])
        for index, word in enumerate(words)
        if word in _OTHER_SIDE
    ]


def _mean_and_deviation(channel: Tensor) -> tuple[float, float]:
    inside = channel[channel > 0]
    if inside.numel() < 2:
        return 0.0, 1.0
    return float(inside.mean()), max(float(inside.std()), LEAST_DEVIATION)
