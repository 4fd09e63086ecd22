"""Windows: cut and joined against MONAI and golden permutations, masks of shifted ones, relative positions."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from nnssl.layers.window import Grid, WindowLayout, Windows, partition, relative_index, reverse, window_layout
from nnssl.layers.window_attention import SwinBlock, WindowAttention, biased_attention

CPU = torch.device("cpu")


def _numbered(grid: Grid) -> torch.Tensor:
    """(1, X, Y, Z, 1): every cell holds its row."""
    return torch.arange(float(np.prod(grid))).view(1, *grid, 1)


def _mask_of(layout: WindowLayout, window: int) -> torch.Tensor:
    for start, stop, mask in layout.groups:
        if start <= window < stop:
            return torch.zeros(layout.cells, layout.cells) if mask is None else mask
    raise AssertionError(window)


@pytest.mark.parametrize(("grid", "window"), [((8, 8, 8), (4, 4, 4)), ((12, 8, 4), (4, 4, 2)), ((7, 14, 5), (7, 7, 5))])
def test_reverse_undoes_partition(grid: Grid, window: Grid) -> None:
    cells = torch.randn(2, *grid, 3)
    assert torch.equal(reverse(partition(cells, window), grid, window), cells)


@pytest.mark.parametrize("grid", [(8, 8, 8), (12, 8, 4), (4, 4, 4)])
def test_the_legacy_reverse_scrambles_as_the_published_code_does(golden: Callable[[str], Any], grid: Grid) -> None:
    stored = golden("g06_smit_swin.npz")[f"legacy_reverse_perm.w4.{'x'.join(map(str, grid))}"]
    cells = _numbered(grid)
    assert reverse(partition(cells, (4, 4, 4)), grid, (4, 4, 4), rule="legacy").flatten().tolist() == stored.tolist()
    layout = Windows(4, reverse_rule="legacy").layout(grid, CPU)
    assert layout.join(layout.cut(cells.flatten(1, 3))).flatten().tolist() == stored.tolist()


def test_the_legacy_reverse_of_two_windows_is_this_permutation() -> None:
    """By hand from the axes (0, 1, 3, 5, 2, 4, 6, 7): window along Z, then cell along Y, X, Z."""
    cells = _numbered((2, 2, 4))  # 8 x + 4 y + z
    found = reverse(partition(cells, (2, 2, 2)), (2, 2, 4), (2, 2, 2), rule="legacy")
    assert found.flatten().tolist() == [0, 1, 8, 9, 4, 5, 12, 13, 2, 3, 10, 11, 6, 7, 14, 15]


def test_relative_positions_agree_with_golden_numbers(golden: Callable[[str], Any]) -> None:
    stored = golden("g06_smit_swin.npz")["relative_position_index"]
    assert np.array_equal(relative_index(4, CPU).numpy(), stored)


def test_relative_positions_are_the_offsets_counted_by_hand() -> None:
    index = relative_index(3, CPU)
    places = list(itertools.product(range(3), repeat=3))
    for (i, first), (j, second) in itertools.product(enumerate(places), repeat=2):
        dx, dy, dz = (a - b + 2 for a, b in zip(first, second, strict=True))
        assert index[i, j] == 25 * dx + 5 * dy + dz


@pytest.mark.parametrize("grid", [(8, 12, 4), (6, 5, 9), (3, 8, 2)])
@pytest.mark.parametrize("shifted", [False, True])
def test_a_token_comes_back_to_its_place(grid: Grid, shifted: bool) -> None:
    tokens = torch.randn(2, int(np.prod(grid)), 3)
    for clamped in (False, True):
        layout = Windows(4, shifted, clamped=clamped).layout(grid, CPU)
        assert torch.equal(layout.join(layout.cut(tokens)), tokens)


def test_padding_is_zero_and_at_the_end_of_each_axis() -> None:
    layout = Windows(2).layout((2, 1, 3), CPU)
    windows = layout.cut(torch.arange(1.0, 7).view(1, 6, 1))
    assert windows.flatten(2).tolist() == [[[1, 2, 0, 0, 4, 5, 0, 0], [3, 0, 0, 0, 6, 0, 0, 0]]]


@pytest.mark.parametrize("grid", [(8, 12, 4), (6, 5, 9), (14, 8, 7), (3, 3, 3)])
@pytest.mark.parametrize("side", [3, 4, 7])
def test_shifted_windows_and_their_masks_are_those_of_monai(grid: Grid, side: int) -> None:
    swin = pytest.importorskip("monai.networks.nets.swin_unetr")
    window, shift = swin.get_window_size(grid, (side,) * 3, (side // 2,) * 3)
    extra = [-length % inside for length, inside in zip(grid, window, strict=True)]
    padded = torch.nn.functional.pad(_numbered(grid) + 1, (0, 0, 0, extra[2], 0, extra[1], 0, extra[0]))
    rolled = padded.roll([-move for move in shift], (1, 2, 3))
    expected = swin.window_partition(rolled, window).squeeze(-1)
    masks = swin.compute_mask(padded.shape[1:4], window, shift, CPU)
    layout = Windows(side, shifted=True, clamped=True).layout(grid, CPU)
    found = layout.cut(_numbered(grid).flatten(1, 3) + 1)[0, :, :, 0]
    assert len(found) == len(expected)
    position = {tuple(cells.tolist()): index for index, cells in enumerate(expected)}
    for index, cells in enumerate(found):
        match = position.pop(tuple(cells.tolist()), None)
        if match is not None:  # windows of padding alone all look the same
            assert torch.equal(
                _mask_of(layout, index), masks[match] if any(shift) else torch.zeros(1).expand_as(masks[0])
            )
    assert all(not any(cells) for cells in position)


def test_at_most_eight_masks_are_kept_and_most_windows_need_none() -> None:
    layout = Windows(4, shifted=True).layout((24, 24, 24), CPU)
    assert len(layout.groups) == 8
    assert layout.groups[0] == (0, 125, None)
    assert layout.groups[-1].stop == 216


def test_layouts_are_kept_but_not_without_limit() -> None:
    first = Windows(4, shifted=True).layout((8, 8, 12), CPU)
    assert Windows(4, shifted=True).layout((8, 8, 12), CPU) is first
    assert window_layout.cache_info().maxsize == 32


def test_a_layout_first_used_for_prediction_serves_training() -> None:
    window_layout.cache_clear()
    relative_index.cache_clear()
    block = SwinBlock(8, 2, windows=Windows(2, shifted=True))
    cells = torch.randn(1, 4, 4, 6, 8)
    with torch.inference_mode():
        block(cells)
    block(cells).sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())


def test_cells_that_only_the_shift_made_neighbours_do_not_mix() -> None:
    torch.manual_seed(0)
    block = SwinBlock(8, 2, windows=Windows(4, shifted=True))
    cells = torch.randn(1, 8, 8, 8, 8, requires_grad=True)
    block(cells)[0, 0, 0, 0].sum().backward()
    assert cells.grad is not None
    reached = (cells.grad.abs().sum(-1) > 1e-20)[0].nonzero()
    assert reached.min(0).values.tolist() == [0, 0, 0]
    assert reached.max(0).values.tolist() == [
        1,
        1,
        1,
    ]  # the corner's window: two cells per axis, rest across the border


def test_an_unshifted_window_mixes_all_its_cells_and_no_others() -> None:
    torch.manual_seed(0)
    block = SwinBlock(8, 2, windows=Windows(4))
    cells = torch.randn(1, 8, 4, 12, 8, requires_grad=True)
    block(cells)[0, 5, 1, 6].sum().backward()
    assert cells.grad is not None
    reached = (cells.grad.abs().sum(-1) > 0)[0].nonzero()
    assert (reached.min(0).values.tolist(), reached.max(0).values.tolist()) == ([4, 0, 4], [7, 3, 7])
    assert len(reached) == 64


def _attention_inputs(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 2, 6, 4)] * 3 + [(2, 6, 6)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def test_the_recomputed_gradient_is_the_numerical_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnssl.layers.window_attention.RECOMPUTED_LOGITS", 2 * 72)  # two windows at a time, then one
    assert torch.autograd.gradcheck(biased_attention, _attention_inputs(torch.float64))


def test_attention_with_a_trained_bias_equals_the_written_out_formula() -> None:
    query, key, value, bias = inputs = _attention_inputs(torch.float32)
    written = (query @ key.transpose(-2, -1) / 2 + bias).softmax(-1) @ value
    found = biased_attention(query, key, value, bias)
    torch.testing.assert_close(found, written, atol=1e-6, rtol=1e-5)
    upstream = torch.randn_like(found)
    expected = torch.autograd.grad(written, inputs, upstream)
    for ours, theirs in zip(torch.autograd.grad(found, inputs, upstream), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_a_clamped_window_takes_the_first_rows_of_the_whole_index() -> None:
    attention = WindowAttention(4, 2, window=3, qkv_bias=False)
    table, index = attention.relative_position_bias_table, relative_index(3, CPU)
    bias = attention.position_bias(8)
    assert bias.shape == (2, 8, 8)
    assert bias[1, 5, 2] == table[index[5, 2], 1]
    agree = (index[:8, :8] == torch.tensor([[0]]) + relative_index(2, CPU)).float().mean()
    assert agree < 0.2  # not the relative positions of a 2^3 window


def test_stochastic_depth_drops_whole_samples_and_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    block = SwinBlock(8, 2, windows=Windows(2), drop_path=0.25).train()
    with torch.no_grad():
        kept = block._kept(torch.ones(4000, 1, 8))
    assert kept.unique().tolist() == pytest.approx([0, 4 / 3])
    assert kept.mean().item() == pytest.approx(1, abs=0.03)
    assert all(len(sample.unique()) == 1 for sample in kept[:50])
    assert torch.equal(block.eval()._kept(torch.ones(4, 1, 8)), torch.ones(4, 1, 8))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="width 10 cannot be split into 4 heads"):
        WindowAttention(10, 4, window=2, qkv_bias=True)
