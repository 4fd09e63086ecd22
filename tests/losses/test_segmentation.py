"""Binary cross entropy + Dice equals sums by hand, MONAI's, PyTorch's in float64, and nnU-Net's loss of two classes."""

import math

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from nnssl.losses.segmentation import SMOOTH, bce_dice, soft_dice

DICE = {"batch_dice": False, "smooth": SMOOTH, "ddp": False}


def example(logits: int, labels: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    prediction = torch.randn((2, logits, 4, 5, 6), generator=generator) * 2
    target = torch.randint(0, labels, (2, 1, 4, 5, 6), generator=generator, dtype=torch.int16)
    return prediction, target


def test_four_voxels_by_hand() -> None:
    logits = torch.tensor([0.0, 0.0, math.log(3), -math.log(3)]).reshape(1, 1, 4, 1, 1)
    target = torch.tensor([1, 0, 1, 0]).reshape(1, 1, 4, 1, 1)
    entropy = (2 * math.log(2) - 2 * math.log(0.75)) / 4
    dice = 2 * (0.5 + 0.75) / ((0.5 + 0.5 + 0.75 + 0.25) + 2)
    assert bce_dice(logits, target).item() == pytest.approx(entropy - dice, abs=1e-5)


def test_one_logit_is_binary_cross_entropy_and_monais_dice_loss() -> None:
    logits, target = example(1)
    entropy = F.binary_cross_entropy_with_logits(logits.double(), target.double())
    dice = DiceLoss(sigmoid=True, smooth_nr=SMOOTH, smooth_dr=SMOOTH)(logits.double(), target.double())
    assert bce_dice(logits, target).item() == pytest.approx((entropy + dice - 1).item(), abs=1e-6)


def test_two_logits_are_nnunets_cross_entropy_and_dice_of_the_foreground() -> None:
    logits, target = example(2)
    peer = DC_and_CE_loss({**DICE, "do_bg": False}, {}, dice_class=MemoryEfficientSoftDiceLoss)
    assert bce_dice(logits, target).item() == pytest.approx(peer(logits, target).item(), abs=1e-6)


def test_ignored_voxels_count_in_neither_term() -> None:
    logits, target = example(2, labels=3)
    peer = DC_and_CE_loss({**DICE, "do_bg": False}, {}, ignore_label=2, dice_class=MemoryEfficientSoftDiceLoss)
    assert bce_dice(logits, target, ignore_label=2).item() == pytest.approx(peer(logits, target).item(), abs=1e-6)


def test_ignored_voxels_of_a_region_come_in_a_second_channel() -> None:
    logits, labels = example(1, labels=3)
    target = torch.cat([labels == 1, labels == 2], dim=1)
    peer = DC_and_BCE_loss({}, {**DICE, "do_bg": True}, use_ignore_label=True)
    assert bce_dice(logits, target, ignore_label=2).item() == pytest.approx(peer(logits, target).item(), abs=1e-6)


def test_gradients_are_those_of_float64() -> None:
    logits, target = example(2)
    exact = logits.double().requires_grad_()
    difference = exact[:, 1:] - exact[:, :1]
    truth = target.double()
    overlap = (difference.sigmoid() * truth).sum((2, 3, 4))
    total = difference.sigmoid().sum((2, 3, 4)) + truth.sum((2, 3, 4))
    entropy = F.binary_cross_entropy_with_logits(difference, truth)
    (entropy - ((2 * overlap + SMOOTH) / (total + SMOOTH)).mean()).backward()
    single = logits.requires_grad_()
    bce_dice(single, target).backward()
    assert torch.allclose(single.grad.double(), exact.grad, atol=1e-8)  # type: ignore[union-attr]


def test_a_perfect_prediction_reaches_minus_one_also_without_tumour() -> None:
    target = torch.zeros((2, 1, 4, 4, 4))
    target[0, 0, :2] = 1
    assert bce_dice(200 * target - 100, target).item() == pytest.approx(-1, abs=1e-5)
    assert soft_dice(torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2)).item() == 1


def test_bfloat16_logits_are_summed_in_float32() -> None:
    logits, target = example(1)
    rounded = logits.bfloat16()
    assert bce_dice(rounded, target).dtype == torch.float32
    assert bce_dice(rounded, target).item() == pytest.approx(bce_dice(rounded.float(), target).item(), abs=1e-6)


def test_three_logits_are_refused() -> None:
    with pytest.raises(ValueError, match="got 3 logits; expected 1, or 2"):
        bce_dice(*example(3))
