"""Random intensity: who is changed, how often, and by which ranges."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nnssl.transforms.random_intensity import (
    NOISE_SIGMA,
    Change,
    _control_points,
    _one_change_at_a_time,
    _one_sample_at_a_time,
    apply,
    contrast_noise_or_histogram,
    gibbs,
    smooth,
    smooth_or_sharpen,
)
from tests.rules import uniform

DRAW: dict[str, Callable[[int, torch.Generator, float], list[Change]]] = {
    "contrast_noise_or_histogram": contrast_noise_or_histogram,
    "smooth": smooth,
    "smooth_or_sharpen": smooth_or_sharpen,
    "gibbs": gibbs,
}
COUNT = 400


def _volumes(count: int = COUNT) -> Tensor:
    return torch.from_numpy(uniform("random", (count, 1, 4, 4, 4), 0.0, 1.0))


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _changed(name: str, volumes: Tensor, generator: torch.Generator, probability: float) -> Tensor:
    return apply(volumes, DRAW[name](len(volumes), generator, probability))


@pytest.mark.parametrize("name", DRAW)
@pytest.mark.parametrize("probability", [0.0, 0.4, 1.0])
def test_the_requested_share_of_samples_changes(name: str, probability: float) -> None:
    changed = _changed(name, _volumes(), _generator(), probability)
    share = (changed != _volumes()).flatten(1).any(1).float().mean().item()
    assert share == pytest.approx(
        probability, abs=0.1 if 0 < probability < 1 else 0.03
    )  # small alphas keep all of k-space


@pytest.mark.parametrize("name", DRAW)
def test_the_same_seed_gives_the_same_numbers(name: str) -> None:
    first, again, other = (_changed(name, _volumes(20), _generator(seed), 0.9) for seed in (1, 1, 2))
    assert first.equal(again) and not first.equal(other)


@pytest.mark.parametrize("name", DRAW)
def test_a_sample_does_not_depend_on_what_the_others_hold(name: str) -> None:
    volumes = _volumes(12)
    altered = volumes.clone()
    altered[3:] = 0.25
    first, second = (_changed(name, part, _generator(), 1.0) for part in (volumes, altered))
    torch.testing.assert_close(first[:3], second[:3])


def test_each_third_of_the_one_of_three_block_occurs_equally_often() -> None:
    changed = _changed("contrast_noise_or_histogram", _volumes(), _generator(), 1.0)
    noisy = ((changed - _volumes()).abs().flatten(1).amax(1) < 6 * NOISE_SIGMA[1]).float().mean().item()
    assert noisy == pytest.approx(1 / 3, abs=0.08)


def test_control_points_ascend_from_0_to_1() -> None:
    points = _control_points(500, _generator())
    assert bool((points.diff(dim=1) >= 0).all())
    assert bool((points[:, 0] == 0).all()) and bool((points[:, -1] == 1).all())
    assert points[:, 1].mean().item() == pytest.approx(1 / 9, abs=0.01)  # uniform in (0, 2/9)


def test_about_half_of_smooth_or_sharpen_leaves_the_range_by_sharpening() -> None:
    changed = _changed("smooth_or_sharpen", _volumes(), _generator(), 1.0).flatten(1)
    outside = ((changed < -1e-3) | (changed > 1.0 + 1e-3)).any(1).float().mean().item()
    assert outside == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("name", DRAW)
def test_one_sample_and_one_change_at_a_time_give_the_same_numbers(name: str) -> None:
    changes = [*DRAW[name](20, _generator(), 0.6), Change(lambda part, _, out: torch.mul(part, 2, out=out))]
    by_sample, by_change = _one_sample_at_a_time(_volumes(20), changes), _one_change_at_a_time(_volumes(20), changes)
    torch.testing.assert_close(by_sample, by_change, atol=1e-6, rtol=1e-5)
    assert not by_sample.equal(_volumes(20) * 2)
