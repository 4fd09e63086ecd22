"""Cross entropy and accuracy of classes, by hand."""

import math

import pytest
import torch

from nnssl.losses.classification import accuracy, class_entropy


def test_cross_entropy_of_two_rows_is_the_mean_of_minus_log_probability() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    expected = -(math.log(3 / 4) + math.log(1 / 2)) / 2
    assert class_entropy(logits, torch.tensor([1, 0])).item() == pytest.approx(expected)


def test_bf16_logits_give_a_float32_loss() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert class_entropy(torch.zeros(2, 4).bfloat16(), torch.tensor([0, 3])).item() == pytest.approx(math.log(4))


def test_accuracy_is_the_share_of_highest_logits_on_the_label() -> None:
    logits = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert accuracy(logits, torch.tensor([1, 0, 1, 0])).item() == 0.75
