"""Cut-out and swapped boxes against the reference's statistics (four standard errors) and by their definition."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from nnssl.transforms.corruption import cut_out, random_boxes, swap_boxes

SHAPE = (96, 96, 96)
DRAWS, REFERENCE_DRAWS = 300, 600
CHANGED = 7.0  # a value that no corruption writes


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_share_of_dropped_voxels_is_distributed_like_the_reference(golden: Callable[[str], Any]) -> None:
    stored = golden("g08_contrastive_rotation_cutout.npz")
    mean, deviation, *quantiles = stored["cutout.union_fraction_mean_std_q05_q25_q50_q75_q95_max"]
    generator, shares = _generator(), []
    for _ in range(DRAWS):
        dropped = np.zeros(SHAPE, dtype=bool)
        for box in random_boxes(SHAPE, 0.3, generator):
            dropped[box] = True
        shares.append(dropped.mean())
    error = np.sqrt(1 / DRAWS + 1 / REFERENCE_DRAWS)
    assert abs(np.mean(shares) - mean) < 4 * deviation * error
    assert abs(np.std(shares) - deviation) < 4 * deviation * error / np.sqrt(2)
    for level, expected in zip((0.25, 0.5, 0.75), quantiles[1:4], strict=True):
        density = 1 / 0.3  # of the target that the share follows
        assert abs(np.quantile(shares, level) - expected) < 4 * np.sqrt(level * (1 - level)) / density * error
    assert max(shares) < quantiles[-1] + 0.01


def test_noise_spans_zero_to_one_and_is_distributed_like_the_reference(golden: Callable[[str], Any]) -> None:
    low, high, mean, deviation = golden("g08_contrastive_rotation_cutout.npz")["cutout.fill_min_max_mean_std_averaged"]
    generator, found = _generator(), []
    for _ in range(60):
        corrupted = cut_out(torch.full((1, *SHAPE), CHANGED), 0.3, generator)
        noise = corrupted[corrupted != CHANGED]
        found.append([noise.min(), noise.max(), noise.mean(), noise.std()])
    got = np.array(found)
    assert (got[:, 0].max(), got[:, 1].min()) == (low, high)  # every box is rescaled on its own
    error = got.std(0) * np.sqrt(1 / len(got) + 1 / REFERENCE_DRAWS)
    assert abs(got[:, 2].mean() - mean) < 4 * error[2]
    assert abs(got[:, 3].mean() - deviation) < 4 * error[3]


def test_with_swapped_boxes_the_changed_share_is_the_reference_s(golden: Callable[[str], Any]) -> None:
    stored = golden("g08_contrastive_rotation_cutout.npz")
    mean, deviation = stored["cutout_and_swap.batch4.changed_fraction_mean_std_q05_q25_q50_q75_q95_max"][:2]
    generator, shares = _generator(), []
    for _ in range(25):
        clean = torch.arange(4.0).add(CHANGED).view(4, 1, 1, 1, 1).expand(4, 1, *SHAPE)  # a value for each sample
        corrupted = torch.stack([cut_out(volume, 0.3, generator) for volume in clean])
        corrupted = swap_boxes(corrupted, 0.3, generator)
        shares += (corrupted != clean).flatten(1).float().mean(1).tolist()
    assert abs(np.mean(shares) - mean) < 4 * deviation * np.sqrt(1 / len(shares) + 1 / 332)
    assert max(shares) < 0.6


def test_boxes_stop_at_the_target_and_have_the_sides_of_the_reference() -> None:
    generator = _generator()
    for share in (0.01, 0.3, 1.0):
        boxes = random_boxes((20, 40, 60), share, generator)
        sides = np.array([[axis.stop - axis.start for axis in box] for box in boxes])
        volumes = sides.prod(1)
        assert volumes[:-1].sum() < share * 20 * 40 * 60  # without the last box the target is not reached
        assert (sides >= 0.05 * np.array([20, 40, 60])).all() and (sides < 0.25 * np.array([20, 40, 60])).all()
        assert all(
            axis.start >= 0 and axis.stop <= full for box in boxes for axis, full in zip(box, (20, 40, 60), strict=True)
        )


def test_no_share_changes_nothing_and_the_input_stays_as_it_is() -> None:
    volume = torch.rand(1, 16, 16, 16, generator=_generator())
    before = volume.clone()
    assert cut_out(volume, 0.0, _generator()).equal(volume)
    assert not cut_out(volume, 0.3, _generator()).equal(volume)
    assert volume.equal(before)


def test_a_batch_of_one_has_nobody_to_swap_with() -> None:
    batch = torch.rand(1, 1, 16, 16, 16, generator=_generator())
    assert swap_boxes(batch, 0.3, _generator()).equal(batch)


def test_swapped_voxels_come_from_the_same_place_of_one_other_sample() -> None:
    batch = torch.rand(3, 1, 16, 16, 16, generator=_generator())
    swapped = swap_boxes(batch, 0.3, _generator(4))
    for sample in range(3):
        changed = swapped[sample] != batch[sample]
        assert any((swapped[sample][changed] == batch[other][changed]).all() for other in range(3))
    assert not swapped.equal(batch)


@pytest.mark.parametrize("corrupt", [lambda generator: cut_out(torch.zeros(1, 16, 16, 16), 0.3, generator)])
def test_the_same_seed_gives_the_same_corruption(corrupt: Callable[[torch.Generator], torch.Tensor]) -> None:
    assert corrupt(_generator(1)).equal(corrupt(_generator(1)))
    assert not corrupt(_generator(1)).equal(corrupt(_generator(2)))
