"""Token masks: exact counts, uniform positions, one generator."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nnssl.transforms.masking import hidden_tokens, hidden_voxels, random_mask, stratified_masks


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_masks_hide_exactly_the_requested_share() -> None:
    """Repeats the draws: shares are the first numbers of the generator."""
    crops, tokens = 16, 216
    drawn = torch.rand(8, generator=_generator(), dtype=torch.float64)
    edges = torch.linspace(0.2, 0.75, 9, dtype=torch.float64)
    expected = [int(tokens * (low + (high - low) * u)) for low, high, u in zip(edges, edges[1:], drawn, strict=False)]
    hidden = stratified_masks(crops, tokens, _generator()).sum(1)
    assert sorted(hidden.tolist()) == [0] * 8 + expected


def test_the_mean_hidden_share_of_masked_crops_is_the_middle() -> None:
    generator = _generator()
    shares = [stratified_masks(8, 343, generator).float().mean().item() * 2 for _ in range(100)]
    assert sum(shares) / len(shares) == pytest.approx(0.475, abs=0.01)


def test_every_token_and_every_crop_is_hidden_equally_often() -> None:
    generator = _generator()
    total = sum(stratified_masks(4, 27, generator).float() for _ in range(2000)) / 2000
    assert torch.allclose(total, torch.full((4, 27), 0.5 * 0.475), atol=0.05)


def test_positions_and_weights_follow_the_mask() -> None:
    mask = stratified_masks(6, 27, _generator())
    hidden = hidden_tokens(mask)
    flat = torch.zeros(6 * 27, dtype=torch.bool)
    flat[hidden.position] = True
    assert flat.view(6, 27).equal(mask)
    for crop in range(6):
        rows = hidden.position // 27 == crop
        assert hidden.weight[rows].sum().item() == pytest.approx(float(rows.any()))


def test_masks_depend_on_the_generator_only() -> None:
    torch.manual_seed(1)
    first = stratified_masks(6, 27, _generator(4))
    torch.manual_seed(2)
    assert first.equal(stratified_masks(6, 27, _generator(4)))
    assert not first.equal(stratified_masks(6, 27, _generator(5)))


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_none_or_all_crops_can_be_masked(probability: float) -> None:
    mask = stratified_masks(4, 27, _generator(), probability=probability)
    hidden = hidden_tokens(mask)
    assert mask.any(1).float().mean().item() == probability
    assert len(hidden.position) == len(hidden.weight) == int(mask.sum())


def test_a_random_mask_hides_as_many_tokens_as_the_reference(golden: Callable[[str], Any]) -> None:
    file = golden("g07_smit_losses.npz")
    names = [name for name in file.files if name.startswith("mask_count")]
    rows = [row for name in names for row in file[name].reshape(-1, 5)]
    assert rows
    for side, ratio, masked, blocks, _ in rows:
        mask = random_mask(int(side // 16) ** 3, float(ratio), _generator())
        assert (len(mask), int(mask.sum())) == (blocks, masked)


def test_a_share_that_is_a_whole_number_of_tokens_is_not_rounded_up() -> None:
    assert int(random_mask(30, 0.1, _generator()).sum()) == 3  # 0.1 * 30 is 3.0000000000000004


def test_hidden_voxels_are_the_blocks_of_the_hidden_tokens() -> None:
    mask = random_mask(2 * 3 * 1, 0.5, _generator())[None]
    voxels = hidden_voxels(mask, (2, 3, 1), 4)
    assert voxels.shape == (1, 1, 8, 12, 4)
    for x, y, z in torch.cartesian_prod(*map(torch.arange, (8, 12, 4))).tolist():
        assert voxels[0, 0, x, y, z] == mask[0, (x // 4) * 3 + y // 4]
