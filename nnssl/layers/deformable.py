"""Multi-scale deformable attention in 3D: each query reads a few learnt points of several feature volumes.

Deformable DETR (Zhu et al. 2021, arXiv:2010.04159, section 4.1) in three dimensions, as used by ViT-Adapter.
The three components of every point and offset are ordered (Z, Y, X), the order in which `grid_sample` reads them.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnssl.layers.position import full_precision

Grid = tuple[int, int, int]  # cells along X, Y, Z

HEADS = 8  # one per octant of the initial offsets
POINTS = 4  # per head and level, initially 1 to 4 voxels away

# The volume axis (0 X, 1 Y, 2 Z) whose cell centre and length feed component 0, 1, 2 of a point.
# "reference" is the published 3DINO order, where a query at (x, y, z) reads around (z, x, y): only for adapters
# trained there.
OFFSET_ORDERS = {"correct": (2, 1, 0), "reference": (1, 0, 2)}


def cell_centres(grid: Grid, offset_order: str = "correct", device: torch.device | None = None) -> Tensor:
    """Centres of the cells of `grid` as fractions of the volume: (X * Y * Z, 3), raster order (Z fastest)."""
    axes = [(torch.arange(cells, dtype=torch.float32, device=device) + 0.5) / cells for cells in grid]
    centres = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    return centres[:, list(OFFSET_ORDERS[offset_order])]


def octant_offsets(levels: int, points: int = POINTS) -> Tensor:
    """Initial offsets in voxels (HEADS, levels, points, 3): head h looks into octant h, point k lies k voxels away."""
    octants = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)))
    distance = torch.arange(1, points + 1, dtype=torch.float32)
    return (octants[:, None, None, :] * distance[:, None]).expand(HEADS, levels, points, 3).clone()


def sample_points(value: Tensor, grids: Sequence[Grid], locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of trilinear samples; outside the volume is zero.

    Args:
        value: (B, N, heads, channels), the cells of all grids one after another, raster order.
        grids: one per level; N is the sum of their cells.
        locations: (B, Q, heads, levels, points, 3) fractions of the volume, components (Z, Y, X).
        weights: (B, Q, heads, levels, points).

    Returns:
        (B, Q, heads * channels), head-major.
    """
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    sampling = (locations * 2 - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2).unsqueeze(-2)  # (L, B*h, Q, P, 1, 3)
    shares = weights.permute(3, 0, 2, 1, 4).flatten(1, 2).unsqueeze(2)  # (L, B*h, 1, Q, P)
    total = value.new_zeros(batch * heads, channels, queries)
    for level, cells in enumerate(value.split([x * y * z for x, y, z in grids], dim=1)):
        volume = cells.permute(0, 2, 3, 1).reshape(batch * heads, channels, *grids[level])
        samples = F.grid_sample(volume, sampling[level], mode="bilinear", padding_mode="zeros", align_corners=False)
        total = total + (samples.squeeze(-1) * shares[level]).sum(-1)
    return total.view(batch, heads * channels, queries).transpose(1, 2)


class DeformableAttention(nn.Module):
    """Queries of one width read features of another; offsets, weights and sampling are computed in float32."""

    def __init__(
        self, query_dim: int, feature_dim: int, *, value_dim: int, levels: int, offset_order: str = "correct"
    ) -> None:
        """`value_dim` (a multiple of 8 heads) is the width of what is sampled; the reference uses query_dim / 4."""
        super().__init__()
        if offset_order not in OFFSET_ORDERS:
            raise ValueError(f"offset order {offset_order!r} is unknown; known: {', '.join(OFFSET_ORDERS)}")
        if value_dim <= 0 or value_dim % HEADS:
            raise ValueError(f"deformable attention of value width {value_dim}: must be a multiple of {HEADS} heads")
        self.levels, self.offset_order = levels, offset_order
        self.sampling_offsets = nn.Linear(query_dim, HEADS * levels * POINTS * 3)
        self.attention_weights = nn.Linear(query_dim, HEADS * levels * POINTS)
        self.value_proj = nn.Linear(feature_dim, value_dim)
        self.output_proj = nn.Linear(value_dim, query_dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uniform attention over octant offsets; Xavier-uniform value and output projections."""
        for layer in (self.sampling_offsets, self.attention_weights):
            layer.weight.zero_()
        self.attention_weights.bias.zero_()
        self.sampling_offsets.bias.copy_(octant_offsets(self.levels).flatten())
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            layer.bias.zero_()

    def forward(self, query: Tensor, centres: Tensor, feature: Tensor, grids: Sequence[Grid]) -> Tensor:
        """(B, Q, query_dim) from queries at `centres` (Q, 3; see cell_centres) and (B, N, feature_dim) on `grids`."""
        value = self.value_proj(feature).unflatten(-1, (HEADS, -1))
        with full_precision(query.device):  # bfloat16 would move points by hundredths of a voxel
            locations, weights = self._points(query.float(), centres, grids)
            sampled = sample_points(value.float(), grids, locations, weights)
        return self.output_proj(sampled)

    def _points(self, query: Tensor, centres: Tensor, grids: Sequence[Grid]) -> tuple[Tensor, Tensor]:
        order = OFFSET_ORDERS[self.offset_order]
        lengths = torch.tensor([[grid[axis] for axis in order] for grid in grids], dtype=torch.float32)
        lengths = lengths.to(query.device, non_blocking=True)[:, None]  # (levels, 1, 3)
        offsets = self.sampling_offsets(query).unflatten(-1, (HEADS, self.levels, POINTS, 3))
        weights = self.attention_weights(query).unflatten(-1, (HEADS, self.levels * POINTS)).softmax(-1)
        return centres[:, None, None, None] + offsets / lengths, weights.unflatten(-1, (self.levels, POINTS))
