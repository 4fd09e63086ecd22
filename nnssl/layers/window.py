"""Windows of a 3D grid of tokens: which token goes where, relative positions inside, and masks of shifted windows."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Grid = tuple[int, int, int]  # cells along X, Y, Z

# Where the axes (batch, three of the windows, three inside a window, channel) go when windows become a grid again.
# "legacy" is what SMIT and its descendants do: the same order as in the partition, which is not its inverse. Weights
# trained so need it: their attention reads a fixed permutation of the grid (of 8^3 cells, 3 % stay in place).
REVERSE_AXES = {"correct": (0, 1, 4, 2, 5, 3, 6, 7), "legacy": (0, 1, 3, 5, 2, 4, 6, 7)}
MASKED = -100.0  # added to the logit of two cells that only the cyclic shift made neighbours (Swin)
CACHED_LAYOUTS = 32  # a few input sizes times four stages, shifted or not


@dataclass(frozen=True)
class Windows:
    """How a block cuts any grid into windows."""

    side: int  # cells
    shifted: bool = False  # by half a window along each axis
    reverse_rule: str = "correct"  # a key of `REVERSE_AXES`
    clamped: bool = False  # True: a grid side no longer than the window becomes the window, unshifted; False: padded

    def layout(self, grid: Grid, device: torch.device) -> "WindowLayout":
        """The layout of one grid; the last few dozen are kept."""
        window, shift = [], []
        for side in grid:
            fits = self.clamped and side <= self.side
            window.append(side if fits else self.side)
            shift.append(self.side // 2 if self.shifted and not fits else 0)
        return window_layout(grid, _grid(window), _grid(shift), rule=self.reverse_rule, device=device)


class WindowGroup(NamedTuple):
    """Neighbouring windows of a layout that share one mask."""

    start: int
    stop: int
    mask: Tensor | None  # (n, n) additive; None: every cell sees every cell


class WindowLayout(NamedTuple):
    """How the tokens of a grid are cut into windows and put back."""

    cells: int  # n, cells of a window
    source: Tensor  # (windows * n,) row of the grid's tokens that each cell reads; one past the end: padding, zero
    target: Tensor  # (tokens of the grid,) row of the windows' cells that each token gets
    groups: list[WindowGroup]

    def cut(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, C) of the grid in raster order (Z fastest) as windows (B, windows, n, C)."""
        if len(self.source) > len(self.target):
            tokens = F.pad(tokens, (0, 0, 0, 1))
        return tokens.index_select(1, self.source).unflatten(1, (-1, self.cells))

    def join(self, windows: Tensor) -> Tensor:
        """Windows (B, windows, n, C) as tokens (B, N, C) of the grid."""
        return windows.flatten(1, 2).index_select(1, self.target)


@lru_cache(maxsize=CACHED_LAYOUTS)
@torch.inference_mode(False)  # what is kept must serve training too
def window_layout(grid: Grid, window: Grid, shift: Grid, *, rule: str, device: torch.device) -> WindowLayout:
    """Layout of a grid that is padded at the end of each axis to whole windows and cyclically shifted.

    Args:
        grid, window, shift: cells along X, Y, Z.
        rule: a key of `REVERSE_AXES`.
        device: where the tensors of the layout go.
    """
    x, y, z = grid
    tokens = torch.arange(x * y * z, device="cpu").view(1, x, y, z, 1)
    extra = [-side % inside for side, inside in zip(grid, window, strict=True)]
    padded = F.pad(tokens, (0, 0, 0, extra[2], 0, extra[1], 0, extra[0]), value=x * y * z)
    whole = _grid(padded.shape[1:4])
    source = partition(padded.roll([-move for move in shift], (1, 2, 3)), window).squeeze(-1)
    order, groups = _grouped(whole, window, shift)
    rows = torch.empty_like(source)
    rows[order] = torch.arange(source.numel(), device="cpu").view_as(source)  # of each cell once windows are grouped
    target = reverse(rows[..., None], whole, window, rule=rule).roll(shift, (1, 2, 3))[:, :x, :y, :z].flatten()
    moved = [WindowGroup(start, stop, mask if mask is None else mask.to(device)) for start, stop, mask in groups]
    return WindowLayout(source.shape[1], source[order].flatten().to(device), target.to(device), moved)


def partition(grid: Tensor, window: Grid) -> Tensor:
    """Cut (B, X, Y, Z, C) into windows (B * windows, n, C), both in raster order (Z fastest)."""
    x, y, z = window
    blocks = grid.unflatten(3, (-1, z)).unflatten(2, (-1, y)).unflatten(1, (-1, x))
    return blocks.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, x * y * z, grid.shape[-1])


def reverse(windows: Tensor, grid: Grid, window: Grid, *, rule: str = "correct") -> Tensor:
    """Windows (B * windows, n, C) as a grid (B, X, Y, Z, C); `rule` is a key of `REVERSE_AXES`."""
    counts = [side // inside for side, inside in zip(grid, window, strict=True)]
    blocks = windows.reshape(-1, *counts, *window, windows.shape[-1])
    return blocks.permute(REVERSE_AXES[rule]).reshape(-1, *grid, windows.shape[-1])


@lru_cache(maxsize=CACHED_LAYOUTS)
@torch.inference_mode(False)
def relative_index(side: int, device: torch.device) -> Tensor:
    """Row of the bias table for every pair of cells of a cubic window: (n, n) int64, n = side^3.

    Entry (i, j) counts the offsets i - j along X, Y, Z, each from -(side - 1) to side - 1, Z fastest.
    """
    axes = torch.meshgrid(*[torch.arange(side, device="cpu")] * 3, indexing="ij")
    index = torch.zeros((), dtype=torch.long, device="cpu")
    for place in (axis.flatten() for axis in axes):
        index = index * (2 * side - 1) + place[:, None] - place[None, :] + side - 1
    return index.to(device)


def _grouped(grid: Grid, window: Grid, shift: Grid) -> tuple[Tensor, list[WindowGroup]]:
    """Order of the windows of a shifted grid in which those with one mask are neighbours, and these groups.

    Only the last window along a shifted axis holds cells from both ends of it: there are at most eight masks.
    """
    kind = region = torch.zeros(1, 1, 1, dtype=torch.long, device="cpu")
    for axis, (side, inside, move) in enumerate(zip(grid, window, shift, strict=True)):
        place = torch.arange(side, device="cpu").view([-1 if other == axis else 1 for other in range(3)])
        kind = kind * 2 + ((place >= side - inside) & (move > 0))
        region = region * 2 + ((place >= side - move) & (move > 0))
    kinds, regions = (partition(values.expand(grid)[None, ..., None], window).squeeze(-1) for values in (kind, region))
    order = kinds[:, 0].argsort(stable=True)
    groups, start = [], 0
    for count in kinds[order, 0].unique_consecutive(return_counts=True)[1].tolist():
        label = regions[order[start]]
        apart = label[:, None] != label[None, :]
        groups.append(WindowGroup(start, start + count, apart * MASKED if apart.any() else None))
        start += count
    return order, groups


def _grid(sides: Sequence[int]) -> Grid:
    x, y, z = sides
    return x, y, z
