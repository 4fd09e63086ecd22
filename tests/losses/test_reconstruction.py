"""Voxel errors over all and over hidden voxels, against the reference's numbers and by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nnssl.losses.reconstruction import voxel_error
from nnssl.transforms.masking import hidden_voxels
from tests.rules import normal, uniform

SHAPE = (2, 1, 16, 16, 16)


def _pair() -> tuple[Tensor, Tensor]:
    image = torch.from_numpy(uniform("image", SHAPE, 0.0, 1.0))
    return torch.from_numpy(normal("reconstruction", SHAPE, 0.5)), image


def test_errors_are_the_reference_s(golden: Callable[[str], Any]) -> None:
    stored = golden("g07_smit_losses.npz")
    blocks = torch.from_numpy(stored["masked_l1.block_mask_8voxels"]).bool()
    hidden = hidden_voxels(blocks.flatten(1), (2, 2, 2), 8)
    got = [voxel_error(*_pair(), kind, hidden=hidden).item() for kind in ("l1", "l2")]
    got += [voxel_error(*_pair(), kind).item() for kind in ("l2", "l1")]
    assert got == pytest.approx(stored["masked_l1.loss"].tolist(), rel=1e-5)


def test_only_hidden_voxels_count() -> None:
    image, target = torch.zeros(1, 1, 2, 1, 1), torch.tensor([3.0, 100.0]).view(1, 1, 2, 1, 1)
    hidden = torch.tensor([True, False]).view(1, 1, 2, 1, 1)
    assert voxel_error(image, target, "l2", hidden=hidden).item() == pytest.approx(9, rel=1e-4)
    assert voxel_error(image, target, "l1", hidden=hidden).item() == pytest.approx(3, rel=1e-4)


def test_every_channel_of_a_hidden_voxel_counts() -> None:
    image, target = torch.zeros(1, 2, 1, 1, 1), torch.tensor([1.0, 3.0]).view(1, 2, 1, 1, 1)
    hidden = torch.ones(1, 1, 1, 1, 1, dtype=torch.bool)
    assert voxel_error(image, target, "l1", hidden=hidden).item() == pytest.approx(2, rel=1e-4)


def test_nothing_hidden_gives_zero() -> None:
    assert voxel_error(*_pair(), hidden=torch.zeros(SHAPE, dtype=torch.bool)).item() == 0


def test_a_bf16_reconstruction_is_compared_in_float32() -> None:
    image, target = _pair()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        error = voxel_error(image.bfloat16(), target)
    assert error.dtype == torch.float32
    assert error.item() == pytest.approx(voxel_error(image, target).item(), rel=1e-3)
