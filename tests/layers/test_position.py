"""Position tables resampled to another grid agree with the golden numbers and with PyTorch's own interpolation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from nnssl.layers.position import interpolation_matrix, resample_positions
from tests.rules import golden_error, rule_tensor

CPU = torch.device("cpu")
RULES = {"vit_rule": "scale_factor", "vit_rule_every_axis": "scale_factor_every_axis", "size_rule": "size"}


def _resampled(table: torch.Tensor, side: int, grid: tuple[int, ...], rule: str) -> torch.Tensor:
    patches = resample_positions(table[:, 1:], (side, side, side), grid, rule=RULES[rule])
    return patches if rule == "size_rule" else torch.cat([table[:, :1], patches], dim=1)


def _ramp(side: int) -> torch.Tensor:
    cells = torch.stack(torch.meshgrid(*[torch.arange(float(side))] * 3, indexing="ij"), dim=-1)
    return torch.cat([torch.zeros(1, 1, 3), cells.reshape(1, -1, 3)], dim=1)


def test_every_golden_table_is_reproduced(golden: Callable[[str], Any]) -> None:
    stored = golden("g02_pos_embed.npz")
    names = sorted({name.split("__")[0] for name in stored.files})
    assert len(names) == 29
    for name in names:
        source, target, rule = name.split(".")
        side, grid = int(source[-1]), tuple(int(part) for part in target[2:].split("x"))
        made = torch.from_numpy(rule_tensor("pos_embed", (1, side**3 + 1, 8)))
        table = _ramp(side) if source.startswith("ramp") else made
        assert golden_error(stored, name, _resampled(table, side, grid, rule).numpy()) < 2e-6, name


@pytest.mark.parametrize("grid", [(7, 7, 7), (3, 4, 9), (6, 5, 8), (4, 6, 9)])
def test_both_rules_agree_with_interpolate(grid: tuple[int, int, int]) -> None:
    table = torch.randn(1, 216, 5, generator=torch.Generator().manual_seed(0))
    cells = table.reshape(1, 6, 6, 6, 5).permute(0, 4, 1, 2, 3)
    factors = [(side + 0.1) / 6 for side in grid]
    by_size = functional.interpolate(cells, size=grid, mode="trilinear", align_corners=False)
    by_factor = functional.interpolate(cells, scale_factor=factors, mode="trilinear", align_corners=False)
    for rule, expected in (("size", by_size), ("scale_factor", by_factor)):
        found = resample_positions(table, (6, 6, 6), grid, rule=rule)
        torch.testing.assert_close(found, expected.flatten(2).transpose(1, 2), atol=5e-6, rtol=0)


def test_a_ramp_of_six_resampled_to_seven_has_the_published_second_sample() -> None:
    ramp = torch.arange(6.0)
    assert (interpolation_matrix(6, 7, 7.1 / 6, device=CPU) @ ramp)[1].item() == pytest.approx(0.7676, abs=5e-5)
    assert (interpolation_matrix(6, 7, 7 / 6, device=CPU) @ ramp)[1].item() == pytest.approx(0.7857, abs=5e-5)


@pytest.mark.parametrize("rule", RULES.values())
def test_the_stored_grid_returns_the_table_unchanged(rule: str) -> None:
    table = torch.randn(1, 3 * 4 * 2, 6)
    assert torch.equal(resample_positions(table, (3, 4, 2), (3, 4, 2), rule=rule), table)


def test_equal_counts_on_another_grid_are_resampled() -> None:
    table = torch.randn(1, 216, 4)
    assert not torch.allclose(resample_positions(table, (6, 6, 6), (4, 6, 9), rule="size"), table)


def test_a_table_that_is_not_a_cube_keeps_its_axes() -> None:
    x = torch.arange(4.0)[:, None, None, None].expand(4, 2, 3, 1).reshape(1, 24, 1)
    found = resample_positions(x, (4, 2, 3), (8, 3, 6), rule="size").reshape(8, 3, 6)
    expected = torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0])
    torch.testing.assert_close(found, expected[:, None, None].expand(8, 3, 6))


def test_autocast_does_not_coarsen_the_table() -> None:
    table = torch.randn(1, 27, 8, generator=torch.Generator().manual_seed(1))
    plain = resample_positions(table, (3, 3, 3), (4, 5, 6), rule="scale_factor")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(resample_positions(table, (3, 3, 3), (4, 5, 6), rule="scale_factor"), plain)


def test_a_half_precision_table_comes_back_in_half_precision() -> None:
    assert resample_positions(torch.ones(1, 8, 2).half(), (2, 2, 2), (3, 3, 3), rule="size").dtype == torch.float16


def test_gradients_reach_every_entry_of_the_table() -> None:
    table = torch.zeros(1, 27, 2, requires_grad=True)
    resample_positions(table, (3, 3, 3), (5, 4, 6), rule="scale_factor").sum().backward()
    assert table.grad is not None and (table.grad > 0).all()
    assert table.grad.sum().item() == pytest.approx(5 * 4 * 6 * 2, rel=1e-5)


def test_an_unknown_rule_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="known: scale_factor, scale_factor_every_axis, size"):
        resample_positions(torch.ones(1, 8, 2), (2, 2, 2), (3, 3, 3), rule="nearest")
