"""Primus (Wald et al. 2025, arXiv:2503.01835): a plain 3D transformer with rotary and learnt positions, patch 8."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnssl.encoders.base import (
    EncoderSpec,
    Features,
    IntensityRange,
    TokenEncoder,
    check_crop,
    check_line,
    check_token_mask,
    check_volume,
)
from nnssl.encoders.foreign import part, z_score_intensity
from nnssl.layers.position import resample_positions

# Order in which the axes of the token grid are counted by the positions, learnt and rotary.
# "whd": X slowest, Z fastest; dynamic-network-architectures since 2025-06-24, and SimMIM of MIC-DKFZ's pretraining.
# "hwd": X and Y swapped; every other Primus file of that pretraining (its module EvaMAE).
AXIS_ORDERS = {"whd": (0, 1, 2), "hwd": (1, 0, 2)}
HEAD_MULTIPLE = 6  # channels of a head: sine and cosine pairs for each of the three axes


@dataclass(frozen=True)
class PrimusShape:
    """Size and conventions of a Primus encoder."""

    dim: int
    depth: int
    heads: int
    patch: int = 8  # voxels per side
    native_side: int = 160  # voxels per side of the default native crop (OpenMind)
    axis_order: str = "whd"
    layer_scale: float = 0.1  # initial factor per channel of both residual branches; 0: none
    attention_norm: bool = True  # LayerNorm on the mixed values before their projection
    input_channels: int = 1  # image channels that enter together

    def __post_init__(self) -> None:
        check_line(self)
        if self.axis_order not in AXIS_ORDERS:
            raise ValueError(f"Primus with axis_order {self.axis_order!r}: known are {', '.join(AXIS_ORDERS)}")
        if self.dim % (self.heads * HEAD_MULTIPLE):
            raise ValueError(
                f"Primus of width {self.dim} with {self.heads} heads: each head must have a multiple of "
                f"{HEAD_MULTIPLE} channels"
            )

    def spec(
        self, name: str, native_crop: tuple[int, int, int] | None, intensity: IntensityRange | None
    ) -> EncoderSpec:
        """Facts about the transformer; the native crop fixes the size of its position table."""
        spec = EncoderSpec(
            name,
            (self.dim,),
            (self.patch,),
            self.patch,
            native_crop or (self.native_side,) * 3,
            native_spacing=(1.0, 1.0, 1.0),
            intensity=intensity or z_score_intensity(),
            family="primus",
            depth=self.depth,
            input_channels=self.input_channels,
        )
        check_crop(spec, spec.native_crop)
        return spec

    def build(self, spec: EncoderSpec, drop_path: float) -> "Primus":
        """A freshly initialised transformer; needs dynamic-network-architectures."""
        return Primus(spec, self, drop_path=drop_path)


class Primus(TokenEncoder):
    """Patch embedding and transformer with the parameter names of dynamic-network-architectures.

    Any input whose sides are multiples of the patch is accepted: the learnt positions are resampled to its grid
    (trilinear, as nnU-Net's fine-tuning does), the rotary ones count on. `mask_token` hides patches as in SimMIM;
    published files hold zeros there.

    Args:
        spec: facts, from `shape.spec`.
        shape: size and conventions.
        drop_path: stochastic depth rate of the last block, in [0, 1); it rises linearly from 0.
    """

    def __init__(self, spec: EncoderSpec, shape: PrimusShape, *, drop_path: float = 0.0) -> None:
        super().__init__()
        if not 0 <= drop_path < 1:
            raise ValueError(f"building {spec.name!r}: drop_path {drop_path} must lie in [0, 1)")
        self.spec, self.depth, self.dim, self.patch = spec, shape.depth, shape.dim, shape.patch
        self.axes = AXIS_ORDERS[shape.axis_order]
        self.native_grid = spec.token_grid(spec.native_crop)
        self.down_projection = part("building_blocks.patch_encode_decode", "PatchEmbed")(
            (shape.patch,) * 3, shape.input_channels, shape.dim
        )
        self.down_projection.apply(part("initialization.weight_init", "InitWeights_He")(1e-2))
        self.eva = part("building_blocks.eva", "Eva")(
            embed_dim=shape.dim,
            depth=shape.depth,
            num_heads=shape.heads,
            ref_feat_shape=self.native_grid,
            drop_path_rate=drop_path,
            init_values=shape.layer_scale or None,
            scale_attn_inner=shape.attention_norm,
        )
        self.mask_token = nn.Parameter(torch.zeros(1, 1, shape.dim))

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks in the order of the data."""
        return self.eva.blocks

    def forward(self, volume: Tensor, token_mask: Tensor | None = None) -> Features:
        """Encode volumes; map and tokens have passed the final norm, the summary is their mean."""
        (patches,) = self._after_blocks(volume, [self.depth - 1], token_mask=token_mask)
        taps = {"patch": patches, "distill": patches}
        return Features(maps=[self._map(patches, volume)], summary=patches.mean(1), tokens=taps)

    def layer_maps(self, volume: Tensor, blocks: Sequence[int], norm: bool = True) -> list[Tensor]:
        """Maps (B, dim, X/p, Y/p, Z/p) after the given blocks (0-based, ascending), finally normed or not."""
        wanted = sorted(self._block_index(block) for block in blocks)
        return [self._map(tokens, volume) for tokens in self._after_blocks(volume, wanted, norm=norm)]

    def _after_blocks(
        self, volume: Tensor, wanted: Sequence[int], *, norm: bool = True, token_mask: Tensor | None = None
    ) -> list[Tensor]:
        """Tokens (B, N, dim) in raster order after the wanted blocks."""
        check_volume(self.spec, volume)
        tokens = self.down_projection(volume).flatten(2).transpose(1, 2).to(self.mask_token.dtype)
        if token_mask is not None:
            check_token_mask(self.spec, token_mask, volume)
            tokens = torch.where(token_mask[..., None], self.mask_token, tokens)
        learnt, rotary = self._positions(self.spec.token_grid(volume.shape[2:]))
        tokens, taken = tokens + learnt, []
        for index, block in enumerate(self.blocks[: wanted[-1] + 1]):
            tokens = block(tokens, rope=rotary)
            if index in wanted:
                taken.append(self.eva.norm(tokens) if norm else tokens)
        return taken

    def _positions(self, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Learnt (1, N, dim) and rotary (N, 2 * channels of a head) positions of a grid, in raster order.

        Tokens always run in raster order; with "hwd" their positions are those of the grid with X and Y swapped.
        Deviation: EvaMAE counts rotary positions of a crop that is no cube on the grid that is not swapped, which
        scrambles them; here they follow the tokens.
        """
        counted, stored = ([sides[axis] for axis in self.axes] for sides in (grid, self.native_grid))
        learnt = resample_positions(self.eva.pos_embed, stored, counted, rule="size")
        rope = self.eva.rope
        angles = type(rope)(rope.dim, in_pixels=False, feat_shape=counted, ref_feat_shape=counted, device=learnt.device)
        return self._raster(learnt[0], counted)[None], self._raster(angles.pos_embed, counted)

    def _raster(self, positions: Tensor, counted: Sequence[int]) -> Tensor:
        """(N, C) in counting order to raster order; swapping two axes undoes itself."""
        return positions.unflatten(0, tuple(counted)).permute(*self.axes, 3).flatten(0, 2)

    def _map(self, tokens: Tensor, volume: Tensor) -> Tensor:
        return tokens.transpose(1, 2).unflatten(2, self.spec.token_grid(volume.shape[2:]))

    def _block_index(self, block: int) -> int:
        if not -self.depth <= block < self.depth:
            raise ValueError(
                f"encoder {self.spec.name!r} has no block {block}; allowed: {-self.depth} to {self.depth - 1}"
            )
        return block % self.depth
