"""Stratified token masks: exact counts, uniform positions, one generator."""

import pytest
import torch

from nnssl.transforms.masking import stratified_masks


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_masks_hide_exactly_the_requested_share() -> None:
    """Repeats the draws: shares are the first numbers of the generator."""
    crops, tokens = 16, 216
    drawn = torch.rand(8, generator=_generator(), dtype=torch.float64)
    edges = torch.linspace(0.2, 0.75, 9, dtype=torch.float64)
    expected = [int(tokens * (low + (high - low) * u)) for low, high, u in zip(edges, edges[1:], drawn, strict=False)]
    hidden = stratified_masks(crops, tokens, _generator()).mask.sum(1)
    assert sorted(hidden.tolist()) == [0] * 8 + expected


def test_the_mean_hidden_share_of_masked_crops_is_the_middle() -> None:
    generator = _generator()
    shares = [stratified_masks(8, 343, generator).mask.float().mean().item() * 2 for _ in range(100)]
    assert sum(shares) / len(shares) == pytest.approx(0.475, abs=0.01)


def test_every_token_and_every_crop_is_hidden_equally_often() -> None:
    generator = _generator()
    total = sum(stratified_masks(4, 27, generator).mask.float() for _ in range(2000)) / 2000
    assert torch.allclose(total, torch.full((4, 27), 0.5 * 0.475), atol=0.05)


def test_positions_and_weights_follow_the_mask() -> None:
    masks = stratified_masks(6, 27, _generator())
    flat = torch.zeros(6 * 27, dtype=torch.bool)
    flat[masks.position] = True
    assert flat.view(6, 27).equal(masks.mask)
    for crop in range(6):
        rows = masks.position // 27 == crop
        assert masks.weight[rows].sum().item() == pytest.approx(float(rows.any()))


def test_masks_depend_on_the_generator_only() -> None:
    torch.manual_seed(1)
    first = stratified_masks(6, 27, _generator(4)).mask
    torch.manual_seed(2)
    assert first.equal(stratified_masks(6, 27, _generator(4)).mask)
    assert not first.equal(stratified_masks(6, 27, _generator(5)).mask)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_none_or_all_crops_can_be_masked(probability: float) -> None:
    masks = stratified_masks(4, 27, _generator(), probability=probability)
    assert masks.mask.any(1).float().mean().item() == probability
    assert len(masks.position) == len(masks.weight) == int(masks.mask.sum())
