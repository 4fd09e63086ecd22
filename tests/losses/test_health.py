"""Health numbers against their definitions, and what they say of collapsed and of live features."""

import math

import numpy as np
import pytest
import torch

from nnssl.losses.health import HEALTH, effective_rank, feature_health, feature_spread, target_health
from tests.rules import normal


def test_effective_rank_is_the_exponential_of_the_entropy_of_singular_values() -> None:
    features = normal("rank", (12, 7)).astype(np.float64) * np.arange(1, 8)
    values = np.linalg.svd(features - features.mean(0), compute_uv=False)
    share = values / values.sum()
    expected = math.exp(-(share * np.log(share)).sum())
    assert effective_rank(torch.from_numpy(features)).item() == pytest.approx(expected, rel=1e-12)


def test_effective_rank_counts_equally_strong_directions() -> None:
    for directions in (1, 2, 5):
        eye = torch.eye(directions, 8)
        assert effective_rank(torch.cat([eye, -eye]) + 3.0).item() == pytest.approx(directions, rel=1e-5)


def test_effective_rank_of_many_rows_is_that_of_a_sample() -> None:
    features = torch.from_numpy(normal("many", (2000, 16)))
    assert effective_rank(features).item() == pytest.approx(16, rel=0.02)


def test_collapsed_features_have_no_spread_and_rank_one() -> None:
    same = torch.ones(6, 8)
    assert feature_spread(same).item() == pytest.approx(0.0, abs=1e-6)
    assert effective_rank(same).item() == pytest.approx(1.0)
    assert feature_spread(torch.from_numpy(normal("spread", (500, 64)))).item() == pytest.approx(1.0, abs=0.01)


def test_a_feature_that_is_not_finite_shows() -> None:
    features = torch.eye(4)
    features[1, 2] = torch.nan
    assert all(math.isnan(value.item()) for value in feature_health(features).values())


def test_targets_that_are_one_hot_or_uniform_show() -> None:
    one_hot, uniform = target_health(torch.eye(4)), target_health(torch.full((2, 8), 1 / 8))
    assert (one_hot["teacher_entropy"].item(), one_hot["prototype_usage"].item()) == (0.0, 1.0)
    assert uniform["teacher_entropy"].item() == pytest.approx(1.0)
    skewed = target_health(torch.tensor([[0.9, 0.1, 0.0]] * 6))
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1)) / math.log(3)
    assert skewed["teacher_entropy"].item() == pytest.approx(entropy)
    assert skewed["prototype_usage"].item() == pytest.approx(1 / 3)


def test_the_names_of_health_numbers_are_those_that_are_logged() -> None:
    assert set(HEALTH) == {*feature_health(torch.eye(3)), *target_health(torch.eye(3))}
