"""The published arithmetic of 3DINO's ViT-Adapter segmentor, as a baseline: float32, contiguous, as wide as the ViT.

Written from the papers (3DINO; ViT-Adapter, arXiv:2205.08534; UNETR, arXiv:2103.10504) and a description of the
published code; it computes what `EncoderSegmentor` computes with adapter_width = the ViT's width, precision "fp32" and
offset_order "reference" (a test compares them), in the published order: `grid_sample`, PyTorch's and MONAI's own
layers, contiguous maps, injectors and extractors recomputed in the backward pass.
"""

import torch
from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nnssl.encoders.vit import VisionTransformer
from nnssl.layers.deformable import HEADS, POINTS, cell_centres, octant_offsets

Grid = tuple[int, int, int]
STAGES = 4
VALUE_RATIO = FFN_RATIO = 4  # 1024 -> 256
DROP_PATH = 0.2
EPSILON = 1e-6
WIDTHS = (32, 64, 128, 256)


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention, one `grid_sample` per level."""

    def __init__(self, dim: int, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.sampling_offsets = nn.Linear(dim, HEADS * levels * POINTS * 3)
        self.attention_weights = nn.Linear(dim, HEADS * levels * POINTS)
        self.value_proj, self.output_proj = nn.Linear(dim, dim // VALUE_RATIO), nn.Linear(dim // VALUE_RATIO, dim)
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.sampling_offsets.bias.data = octant_offsets(levels).flatten()

    def forward(self, query: Tensor, centres: Tensor, feature: Tensor, grids: list[Grid]) -> Tensor:
        """(B, Q, dim) from queries at `centres` (Q, 3) and features (B, N, dim) on `grids`."""
        batch, queries = query.shape[:2]
        value = self.value_proj(feature).unflatten(-1, (HEADS, -1))
        offsets = self.sampling_offsets(query).unflatten(-1, (HEADS, self.levels, POINTS, 3))
        weights = self.attention_weights(query).unflatten(-1, (HEADS, -1)).softmax(-1)
        lengths = torch.tensor([[y, x, z] for x, y, z in grids], dtype=query.dtype, device=query.device)
        points = 2 * (centres[:, None, None, None] + offsets / lengths[:, None]) - 1
        sampled = []
        for level, (part, grid) in enumerate(zip(value.split([x * y * z for x, y, z in grids], 1), grids, strict=True)):
            volume = part.flatten(2).transpose(1, 2).reshape(batch * HEADS, -1, *grid)
            places = points[:, :, :, level].transpose(1, 2).flatten(0, 1).unsqueeze(-2)
            sampled.append(F.grid_sample(volume, places, align_corners=False).squeeze(-1))
        shares = weights.transpose(1, 2).reshape(batch * HEADS, 1, queries, -1)
        mixed = (torch.stack(sampled, dim=-2).flatten(-2) * shares).sum(-1)
        return self.output_proj(mixed.view(batch, -1, queries).transpose(1, 2).contiguous())


class ConvFeedForward(nn.Module):
    """Linear, one depth-wise filter bank for three levels, GELU, linear."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = dim // FFN_RATIO
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dwconv = nn.ModuleDict({"dwconv": nn.Conv3d(hidden, hidden, 3, padding=1, groups=hidden)})

    def forward(self, tokens: Tensor, grids: list[Grid]) -> Tensor:
        """(B, M, dim) -> (B, M, dim)."""
        parts = self.fc1(tokens).split([x * y * z for x, y, z in grids], dim=1)
        maps = [as_map(part, grid) for part, grid in zip(parts, grids, strict=True)]
        return self.fc2(F.gelu(torch.cat([as_tokens(self.dwconv["dwconv"](one)) for one in maps], dim=1)))


class Injector(nn.Module):
    """Patch tokens read the adapter's features."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query_norm, self.feat_norm = nn.LayerNorm(dim, eps=EPSILON), nn.LayerNorm(dim, eps=EPSILON)
        self.attn = DeformableAttention(dim, levels=3)
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6))

    def forward(self, patches: Tensor, centres: Tensor, features: Tensor, grids: list[Grid]) -> Tensor:
        """Patch tokens (B, N, dim) after reading features (B, M, dim)."""
        update = self.attn(self.query_norm(patches), centres, self.feat_norm(features), grids)
        return patches + self.gamma * update


class Extractor(nn.Module):
    """The adapter's features read the patch tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query_norm, self.feat_norm = nn.LayerNorm(dim, eps=EPSILON), nn.LayerNorm(dim, eps=EPSILON)
        self.attn = DeformableAttention(dim, levels=1)
        self.ffn_norm, self.ffn = nn.LayerNorm(dim, eps=EPSILON), ConvFeedForward(dim)

    def forward(self, features: Tensor, centres: Tensor, patches: Tensor, grids: list[Grid]) -> Tensor:
        """Features (B, M, dim) on `grids`, the last of which is the patches'."""
        features = features + self.attn(self.query_norm(features), centres, self.feat_norm(patches), grids[-1:])
        branch = self.ffn(self.ffn_norm(features), grids)
        if self.training:
            keep = branch.new_empty(len(branch), 1, 1).bernoulli_(1 - DROP_PATH)
            branch = branch * keep / (1 - DROP_PATH)
        return features + branch


class Interaction(nn.Module):
    """An injector before and extractors after a quarter of the ViT."""

    def __init__(self, dim: int, extra: int) -> None:
        super().__init__()
        self.injector, self.extractor = Injector(dim), Extractor(dim)
        self.extra_extractors = nn.ModuleList(Extractor(dim) for _ in range(extra))


class Prior(nn.Module):
    """Strided convolutions with batch normalisation and ReLU; four maps as wide as the ViT."""

    def __init__(self, input_channels: int, dim: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *_convolution(input_channels, 32, 2), *_convolution(32, 32, 1), *_convolution(32, 32, 1)
        )
        self.conv2, self.conv3, self.conv4 = (
            nn.Sequential(*_convolution(*pair, 2)) for pair in ((32, 64), (64, 128), (128, 128))
        )
        self.fc1, self.fc2, self.fc3, self.fc4 = (nn.Conv3d(width, dim, 1) for width in (32, 64, 128, 128))

    def forward(self, volume: Tensor) -> list[Tensor]:
        """(B, C, X, Y, Z) -> maps (B, dim, ...) at 1/2, 1/4, 1/8, 1/16."""
        first = self.stem(volume)
        second = self.conv2(first)
        third = self.conv3(second)
        return [self.fc1(first), self.fc2(second), self.fc3(third), self.fc4(self.conv4(third))]


class PublishedAdapter(nn.Module):
    """Volumes (B, 1, X, Y, Z) in [-1, 1] to four maps as wide as the ViT."""

    def __init__(self, encoder: VisionTransformer) -> None:
        super().__init__()
        dim = encoder.dim
        self.encoder, self.spm = encoder, Prior(1, dim)
        self.level_embed = nn.Parameter(torch.randn(3, dim))
        self.interactions = nn.ModuleList(Interaction(dim, extra) for extra in (0, 0, 0, 2))
        self.up = nn.ConvTranspose3d(dim, dim, 2, stride=2)
        for level in range(1, STAGES + 1):
            self.add_module(f"channel_merge{level}", nn.Conv3d(dim, dim, 1))
            self.add_module(f"norm{level}", nn.BatchNorm3d(dim))

    def forward(self, volume: Tensor) -> list[Tensor]:
        """Maps (B, dim, ...), fine to coarse."""
        x, y, z = (side // self.encoder.patch for side in volume.shape[2:])
        grids = [(scale * x, scale * y, scale * z) for scale in (4, 2, 1)]
        centres = [cell_centres(grid, "reference", volume.device) for grid in grids]
        everywhere, quarter = torch.cat(centres), self.encoder.depth // STAGES
        finest, *coarser = self.spm(volume)
        features = torch.cat([as_tokens(one) + embed for one, embed in zip(coarser, self.level_embed, strict=True)], 1)
        tokens, taps = self.encoder.embed(volume, position_rule="size"), []
        for stage, interaction in enumerate(self.interactions):
            patches = recomputed(interaction.injector, tokens[:, 1:], centres[-1], features, grids)
            tokens = torch.cat([tokens[:, :1], patches], dim=1)
            tokens = self.encoder.run_blocks(tokens, stage * quarter, (stage + 1) * quarter)
            for extractor in (interaction.extractor, *interaction.extra_extractors):
                features = recomputed(extractor, features, everywhere, tokens[:, 1:], grids)
            taps.append(as_map(tokens[:, 1:], grids[-1]))
        return self._pyramid(finest, features, taps, grids)

    def _pyramid(self, finest: Tensor, features: Tensor, taps: list[Tensor], grids: list[Grid]) -> list[Tensor]:
        parts = features.split([x * y * z for x, y, z in grids], dim=1)
        maps = [as_map(part, grid) for part, grid in zip(parts, grids, strict=True)]
        maps.insert(0, self.up(maps[0]) + finest)
        pyramid = []
        for level, (own, tap) in enumerate(zip(maps, taps, strict=True), start=1):
            merged = self.get_submodule(f"channel_merge{level}")(tap)
            if level < STAGES:
                merged = F.interpolate(merged, size=own.shape[2:], mode="trilinear", align_corners=False)
            pyramid.append(self.get_submodule(f"norm{level}")(own + merged))
        return pyramid


class PublishedDecoder(nn.Module):
    """MONAI's UNETR blocks on four maps and the input."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        same = {"kernel_size": 3, "stride": 1, "norm_name": "instance", "res_block": True}
        up = {"kernel_size": 3, "upsample_kernel_size": 2, "norm_name": "instance", "res_block": True}
        self.input_encoder = UnetrBasicBlock(3, 1, WIDTHS[0], **same)
        self.map_encoders = nn.ModuleList(UnetrBasicBlock(3, dim, width, **same) for width in WIDTHS)
        coarse_to_fine = ((32, 32), (64, 32), (128, 64), (256, 128))
        self.up_blocks = nn.ModuleList(UnetrUpBlock(3, *pair, **up) for pair in coarse_to_fine)
        self.out = UnetOutBlock(3, WIDTHS[0], num_classes)

    def forward(self, volume: Tensor, maps: list[Tensor]) -> Tensor:
        """Logits of the volume's size."""
        full = self.input_encoder(volume)
        *skips, decoded = [encoder(one) for encoder, one in zip(self.map_encoders, maps, strict=True)]
        for up in reversed(self.up_blocks):
            decoded = up(decoded, skips.pop() if skips else full)
        return self.out(decoded)


class PublishedSegmentor(nn.Module):
    """Volumes (B, 1, X, Y, Z) in [-1, 1] to logits; the ViT is frozen."""

    def __init__(self, encoder: VisionTransformer, num_classes: int) -> None:
        super().__init__()
        self.neck = PublishedAdapter(encoder.requires_grad_(False))
        self.decoder = PublishedDecoder(encoder.dim, num_classes)

    def train(self, mode: bool = True) -> "PublishedSegmentor":
        """As usual, but the ViT stays in eval mode."""
        super().train(mode)
        self.neck.encoder.eval()
        return self

    def forward(self, volume: Tensor) -> Tensor:
        """Logits (B, num_classes, X, Y, Z)."""
        return self.decoder(volume, self.neck(volume))


def as_map(tokens: Tensor, grid: Grid) -> Tensor:
    """(B, N, C) -> (B, C, X, Y, Z), contiguous."""
    return tokens.transpose(1, 2).unflatten(2, grid).contiguous()


def as_tokens(volume: Tensor) -> Tensor:
    """(B, C, X, Y, Z) -> (B, N, C)."""
    return volume.flatten(2).transpose(1, 2)


def recomputed(module: nn.Module, query: Tensor, *rest: object) -> Tensor:
    """`module(query, ...)`, recomputed in the backward pass where the query needs a gradient, as published."""
    if query.requires_grad:
        return checkpoint(module, query, *rest, use_reentrant=False)  # type: ignore[no-any-return]
    return module(query, *rest)  # type: ignore[no-any-return]


def _convolution(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm3d(outputs),
        nn.ReLU(inplace=True),
    )
