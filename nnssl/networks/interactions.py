"""How ViT tokens and adapter features talk: injectors write into the ViT, extractors read from it."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnssl.encoders.vit import VisionTransformer
from nnssl.layers.convolution import Conv3x3x3
from nnssl.layers.deformable import DeformableAttention, Grid, cell_centres

LEVELS = 3  # adapter features at strides p/4, p/2, p
FFN_RATIO = 0.25
DROP_PATH = 0.2  # feed-forward branch of the extractors
EPSILON = 1e-6


class Layout(NamedTuple):
    """Where tokens lie: the grids, and the centre of every cell as a fraction of the volume."""

    grid: Grid  # ViT tokens
    levels: list[Grid]  # adapter features, fine to coarse, the last equals `grid`
    token_centres: Tensor  # (N, 3)
    feature_centres: Tensor  # (M, 3)

    @staticmethod
    def of(grid: Grid, offset_order: str, device: torch.device) -> "Layout":
        """The layout of a ViT grid of cells along X, Y, Z."""
        x, y, z = grid
        levels = [(scale * x, scale * y, scale * z) for scale in (4, 2, 1)]
        centres = [cell_centres(level, offset_order, device) for level in levels]
        return Layout(grid, levels, centres[-1], torch.cat(centres))


def to_map(tokens: Tensor, grid: Grid) -> Tensor:
    """(B, N, C) in raster order -> (B, C, X, Y, Z), channels last in memory, without a copy.

    Not by `transpose(1, 2).unflatten(2, grid)`: for one sample that gives the batch a stride of C, with which PyTorch's
    batch normalisation on CPU (seen in torch 2.15) takes a contiguous gradient for a channels-last one.
    """
    return tokens.unflatten(1, grid).movedim(-1, 1)


def to_tokens(volume: Tensor) -> Tensor:
    """(B, C, X, Y, Z) -> (B, N, C) in raster order (Z fastest)."""
    return volume.flatten(2).transpose(1, 2)


class Injector(nn.Module):
    """What the adapter features add to the ViT's patch tokens, gated per channel (1e-6 at first)."""

    def __init__(self, dim: int, width: int, offset_order: str) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=EPSILON)
        self.feat_norm = nn.LayerNorm(width, eps=EPSILON)
        self.attn = DeformableAttention(dim, width, value_dim=dim // 4, levels=LEVELS, offset_order=offset_order)
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6))

    def forward(self, patches: Tensor, features: Tensor, layout: Layout) -> Tensor:
        """Update (B, N, dim) of patch tokens (B, N, dim) from features (B, M, width)."""
        query, value = self.query_norm(patches), self.feat_norm(features)
        return self.gamma * self.attn(query, layout.token_centres, value, layout.levels)


class Extractor(nn.Module):
    """Adapter features read the ViT's patch tokens, then a convolutional feed-forward."""

    def __init__(self, dim: int, width: int, offset_order: str) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(width, eps=EPSILON)
        self.feat_norm = nn.LayerNorm(dim, eps=EPSILON)
        self.attn = DeformableAttention(width, dim, value_dim=dim // 4, levels=1, offset_order=offset_order)
        self.ffn_norm = nn.LayerNorm(width, eps=EPSILON)
        self.ffn = ConvFeedForward(width)

    def forward(self, features: Tensor, patches: Tensor, layout: Layout) -> Tensor:
        """Features (B, M, width) after reading patch tokens (B, N, dim)."""
        query, value = self.query_norm(features), self.feat_norm(patches)
        features = features + self.attn(query, layout.feature_centres, value, [layout.grid])
        return features + _drop_path(self.ffn(self.ffn_norm(features), layout.levels), self.training)


class ConvFeedForward(nn.Module):
    """Linear, one depth-wise 3x3x3 filter bank for all levels, GELU, linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(width * FFN_RATIO)
        self.fc1 = nn.Linear(width, hidden)
        self.dwconv = nn.ModuleDict({"dwconv": Conv3x3x3(hidden, hidden, groups=hidden, bias=True)})
        self.fc2 = nn.Linear(hidden, width)
        for layer in (self.fc1, self.fc2):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor, levels: list[Grid]) -> Tensor:
        """(B, M, width) -> (B, M, width)."""
        parts = self.fc1(features).split([x * y * z for x, y, z in levels], dim=1)
        mixed = [to_tokens(self.dwconv["dwconv"](to_map(part, grid))) for part, grid in zip(parts, levels, strict=True)]
        return self.fc2(F.gelu(torch.cat(mixed, dim=1)))


class Interaction(nn.Module):
    """One quarter of the ViT between an injector and an extractor (the last has two more extractors)."""

    def __init__(self, encoder: VisionTransformer, stage: int, *, width: int, offset_order: str) -> None:
        super().__init__()
        quarter = encoder.depth // 4
        self.first, self.last = stage * quarter, (stage + 1) * quarter
        self.injector = Injector(encoder.dim, width, offset_order)
        self.extractor = Extractor(encoder.dim, width, offset_order)
        extra = 2 if stage == 3 else 0
        self.extra_extractors = nn.ModuleList(Extractor(encoder.dim, width, offset_order) for _ in range(extra))

    def forward(
        self, encoder: VisionTransformer, tokens: Tensor, features: Tensor, layout: Layout
    ) -> tuple[Tensor, Tensor]:
        """ViT tokens (B * C, 1 + N, dim) and features (B, M, width) after this quarter.

        The channels of a volume share the mean of their patch tokens; the class tokens are carried along.
        """
        batch = len(features)
        update = self.injector(channel_mean(tokens, batch), features, layout)
        update = F.pad(update, (0, 0, 1, 0)).repeat_interleave(len(tokens) // batch, dim=0)
        tokens = encoder.run_blocks(tokens + update, self.first, self.last)
        patches = channel_mean(tokens, batch)
        for extractor in [self.extractor, *self.extra_extractors]:
            features = extractor(features, patches, layout)
        return tokens, features


def channel_mean(tokens: Tensor, batch: int) -> Tensor:
    """Mean patch tokens (B, N, dim) over the channels of each volume; tokens are (B * C, 1 + N, dim)."""
    patches = tokens[:, 1:]
    return patches if len(tokens) == batch else patches.unflatten(0, (batch, -1)).mean(1)


def _drop_path(branch: Tensor, training: bool) -> Tensor:
    """Stochastic depth per sample: the branch of a sample is dropped with probability DROP_PATH."""
    if not training:
        return branch
    keep = branch.new_empty(len(branch), *[1] * (branch.dim() - 1)).bernoulli_(1 - DROP_PATH)
    return branch * keep / (1 - DROP_PATH)
