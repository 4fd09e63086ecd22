"""Early stopping counts epochs without a better value; the hash of what is frozen sees every change of it only."""

import math

import pytest
import torch
from torch import nn

from nnssl.trainers.finetune_stop import epochs_without_improvement, frozen_sha256, reason_to_stop


@pytest.mark.parametrize(
    ("history", "waited"),
    [
        ([], 0),
        ([0.3], 0),
        ([0.3, 0.3], 1),
        ([0.1, 0.5, 0.4, 0.5], 2),
        ([0.5, 0.4, 0.6], 0),
        ([math.nan, math.nan], 2),
        ([math.nan, 0.2, math.nan], 1),
    ],
)
def test_waiting_is_counted_from_the_first_best_value(history: list[float], waited: int) -> None:
    assert epochs_without_improvement(history) == waited


def test_the_reason_names_epoch_and_value_and_patience_zero_never_stops() -> None:
    history = [0.1, 0.25, 0.2, 0.2]
    assert reason_to_stop(history, 3) is None
    assert reason_to_stop(history, 0) is None
    reason = reason_to_stop(history, 2)
    assert reason is not None and "after 4 epochs" in reason and "0.2500 (epoch 1) for 2 epochs" in reason


def test_the_hash_sees_frozen_tensors_and_no_trained_ones() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    module[0].requires_grad_(False)
    before, tensors = frozen_sha256(module)
    assert tensors == 2
    with torch.no_grad():
        module[1].weight += 1
        module[1].running_mean += 1
        assert frozen_sha256(module)[0] == before
        module[0].bias[0] += 1e-7
    assert frozen_sha256(module)[0] != before
    module.requires_grad_(False)
    assert frozen_sha256(module)[1] == 4 + 3  # all parameters, and the statistics of the norm
    assert frozen_sha256(module.requires_grad_(True))[1] == 0
