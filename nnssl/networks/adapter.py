"""ViT-Adapter in 3D: a plain ViT becomes a pyramid of feature maps.

Chen et al. 2023 (arXiv:2205.08534), in the three-dimensional form of 3DINO. Parameter names follow the reference.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnssl.encoders.base import EncoderSpec
from nnssl.encoders.vit import VisionTransformer
from nnssl.networks.interactions import LEVELS, Interaction, Layout, to_map, to_tokens
from nnssl.networks.necks import channels_apart, count_passes
from nnssl.networks.recompute import recomputed
from nnssl.networks.spatial_prior import SpatialPrior, initialise_convolutions

PATCHES = (8, 16)
STAGES = 4


def default_width(dim: int) -> int:
    """Adapter width for a ViT of width `dim`: half of it, at most 256 (the reference keeps the full ViT width)."""
    return min(256, dim // 2)


class ViTAdapter(nn.Module):
    """Volumes (B, C, X, Y, Z) to four maps of `width` channels at strides p/8, p/4, p/2, p for ViT patch p.

    A ViT of one channel sees channels one at a time, the spatial prior all of them. The frozen ViT is not the
    bottleneck (10 % of the reference's forward pass): `width` is, and channels are reduced to it before any
    up-sampling. Interactions are computed again in the backward pass (the reference: injectors and extractors, but not
    the ViT's blocks, of which bf16 copies of the weights and activations would be kept).
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        input_channels: int,
        *,
        width: int,
        offset_order: str = "correct",
        stem_width: int = 32,
    ) -> None:
        """`width` equal to the ViT's reproduces the reference; offset_order "reference" its permuted axes too."""
        super().__init__()
        _check(encoder.spec, width)
        passes = count_passes(encoder, input_channels)
        encoder.norm.requires_grad_(False)  # not used: tokens are tapped before it
        self.encoder, self.offset_order = encoder, offset_order
        self.channels = (width,) * STAGES
        self.strides = tuple(encoder.patch // 8 * scale for scale in (1, 2, 4, 8))
        self.level_embed = nn.Parameter(torch.randn(LEVELS, width))
        self.spm = SpatialPrior(input_channels, width, first_stride=encoder.patch // 8, stem_width=stem_width)
        self.interactions = nn.ModuleList(
            Interaction(encoder, stage, width=width, offset_order=offset_order) for stage in range(STAGES)
        )
        self.up = nn.ConvTranspose3d(width, width, 2, stride=2)
        for level in range(1, STAGES + 1):
            self.add_module(f"channel_merge{level}", nn.Conv3d(encoder.dim * passes, width, 1))
            self.add_module(f"norm{level}", nn.BatchNorm3d(width))
        for part in (self.spm, self.interactions, self.up):
            initialise_convolutions(part)

    def forward(self, volume: Tensor) -> list[Tensor]:
        """Maps (B, width, ...), fine to coarse, of a volume in the encoder's intensity range."""
        x, y, z = (side // self.encoder.patch for side in volume.shape[2:])
        layout = Layout.of((x, y, z), self.offset_order, volume.device)
        finest, *coarser = self.spm(volume)
        features = torch.cat(
            [to_tokens(prior) + embed for prior, embed in zip(coarser, self.level_embed, strict=True)], dim=1
        )
        tokens = self.encoder.embed(channels_apart(self.encoder, volume), position_rule="size")
        taps = []
        for interaction in self.interactions:
            tokens, features = recomputed(interaction, self.encoder, tokens, features, layout)
            taps.append(tokens[:, 1:])
        return self._pyramid(finest, features, taps, layout)

    def _pyramid(self, finest: Tensor, features: Tensor, taps: list[Tensor], layout: Layout) -> list[Tensor]:
        """Prior and adapter features plus the up-sampled ViT tokens of each quarter, normalised."""
        sizes = [x * y * z for x, y, z in layout.levels]
        maps = [to_map(part, grid) for part, grid in zip(features.split(sizes, dim=1), layout.levels, strict=True)]
        maps.insert(0, self.up(maps[0]) + finest)
        pyramid = []
        for level, (own, tap) in enumerate(zip(maps, taps, strict=True), start=1):
            merged = self.get_submodule(f"channel_merge{level}")(self._stack_channels(tap, len(own), layout))
            scaled = F.interpolate(merged, size=own.shape[2:], mode="trilinear", align_corners=False)
            pyramid.append(self.get_submodule(f"norm{level}")(own + scaled))
        return pyramid

    @staticmethod
    def _stack_channels(tap: Tensor, batch: int, layout: Layout) -> Tensor:
        """(B * C, N, dim) -> (B, C * dim, gx, gy, gz), channel-major."""
        stacked = tap.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2)
        return to_map(stacked, layout.grid)


def why_no_adapter(spec: EncoderSpec) -> str | None:
    """Why a ViT-Adapter cannot stand on this encoder; None where it can."""
    if spec.family != "vit":
        return f"the ViT-Adapter needs a vision transformer, this encoder is a {spec.family}"
    if spec.depth % STAGES:
        return f"ViT-Adapter on a ViT of {spec.depth} blocks: the depth must be a multiple of {STAGES} stages"
    if spec.strides[0] not in PATCHES:
        return f"ViT-Adapter on a ViT of patch {spec.strides[0]}: allowed patches are {PATCHES}"
    return None


def _check(spec: EncoderSpec, width: int) -> None:
    reason = why_no_adapter(spec)
    if reason:
        raise ValueError(reason)
    if width <= 0 or width % STAGES:
        raise ValueError(f"ViT-Adapter of width {width}: must be a positive multiple of {STAGES}")
