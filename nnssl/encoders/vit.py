"""The 3D vision transformer of 3DINO: cubic patches, a class token, learnt positions, one feature map."""

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
from nnssl.layers.attention import INIT_STD, NORM_EPS, Block, init_linear, layer_scale_init
from nnssl.layers.position import resample_positions


@dataclass(frozen=True)
class ViTShape:
    """Size of a vision transformer."""

    dim: int
    depth: int
    heads: int
    patch: int  # voxels per side
    native_side: int  # voxels per side of the default native crop
    input_channels: int = 1  # image channels that enter together; 3DINO: one at a time

    def __post_init__(self) -> None:
        check_line(self)

    def spec(
        self, name: str, native_crop: tuple[int, int, int] | None, intensity: IntensityRange | None
    ) -> EncoderSpec:
        """Facts about the transformer; the native crop fixes the size of its position table."""
        crop = native_crop or (self.native_side,) * 3
        spec = EncoderSpec(
            name,
            (self.dim,),
            (self.patch,),
            self.patch,
            crop,
            intensity=intensity or IntensityRange(),
            depth=self.depth,
            input_channels=self.input_channels,
        )
        check_crop(spec, crop)
        return spec

    def build(self, spec: EncoderSpec, drop_path: float) -> "VisionTransformer":
        """A freshly initialised transformer."""
        return VisionTransformer(spec, self.depth, heads=self.heads, drop_path=drop_path)


class PatchEmbed(nn.Module):
    """One linear map per cubic patch, as a convolution whose kernel is its stride."""

    def __init__(self, dim: int, patch: int, input_channels: int = 1) -> None:
        super().__init__()
        self.proj = nn.Conv3d(input_channels, dim, kernel_size=patch, stride=patch)

    def forward(self, volume: Tensor) -> Tensor:
        """(B, input_channels, X, Y, Z) -> (B, N, dim) in raster order, Z fastest."""
        return self.proj(volume).flatten(2).transpose(1, 2)


class VisionTransformer(TokenEncoder):
    """ViT for volumes, with the parameter names of the published 3DINO weights (`blocks.<i>.attn.qkv.weight`).

    Any input whose sides are multiples of the patch is accepted; positions are resampled to its grid.

    Args:
        spec: `channels[0]` is the width, `strides[0]` the patch, `native_crop` fixes the position table.
        depth: number of blocks.
        heads: attention heads per block.
        drop_path: stochastic depth rate in [0, 1), the same in all blocks (3DINO's student: 0.3).
    """

    def __init__(self, spec: EncoderSpec, depth: int, *, heads: int, drop_path: float = 0.0) -> None:
        super().__init__()
        if not 0 <= drop_path < 1:
            raise ValueError(f"building {spec.name!r}: drop_path {drop_path} must lie in [0, 1)")
        check_crop(spec, spec.native_crop)
        self.spec = spec
        self.depth = depth
        self.dim = spec.channels[0]
        self.patch = spec.strides[0]
        self.native_grid = self._grid_of(spec.native_crop)
        cells = self.native_grid[0] * self.native_grid[1] * self.native_grid[2]
        self.cls_token = nn.Parameter(torch.empty(1, 1, self.dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + cells, self.dim))
        self.mask_token = nn.Parameter(torch.zeros(1, self.dim))
        self.patch_embed = PatchEmbed(self.dim, self.patch, spec.input_channels)
        scale = layer_scale_init(depth)
        self.blocks = nn.ModuleList(Block(self.dim, heads, drop_path=drop_path, scale=scale) for _ in range(depth))
        self.norm = nn.LayerNorm(self.dim, eps=NORM_EPS)
        self._initialise()

    def forward(self, volume: Tensor, token_mask: Tensor | None = None) -> Features:
        """Encode volumes; the map and the class token have passed the final norm."""
        tokens = self.norm(self.run_blocks(self.embed(volume, token_mask), 0, self.depth))
        grid = self._grid_of(volume.shape[2:])
        patches = tokens[:, 1:]
        taps = {"patch": patches, "distill": patches}
        return Features(maps=[patches.transpose(1, 2).unflatten(2, grid)], summary=tokens[:, 0], tokens=taps)

    def embed(self, volume: Tensor, token_mask: Tensor | None = None, position_rule: str = "scale_factor") -> Tensor:
        """Tokens before block 0: class token, then patches in raster order, with positions added.

        Args:
            volume: (B, input_channels, X, Y, Z).
            token_mask: (B, N) bool, True = the patch is replaced by the mask token (before positions are added).
            position_rule: how positions reach another grid; see `resample_positions`.

        Returns:
            (B, 1 + N, dim) in the dtype of the parameters, under autocast too.
        """
        check_volume(self.spec, volume)
        patches = self.patch_embed(volume).to(self.pos_embed.dtype)
        if token_mask is not None:
            check_token_mask(self.spec, token_mask, volume)
            patches = torch.where(token_mask[..., None], self.mask_token, patches)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        return tokens + self.positions(self._grid_of(volume.shape[2:]), position_rule)

    def positions(self, grid: Sequence[int], rule: str = "scale_factor") -> Tensor:
        """Position embeddings (1, 1 + X*Y*Z, dim) of a grid of tokens; the class token's entry comes first."""
        patches = resample_positions(self.pos_embed[:, 1:], self.native_grid, grid, rule=rule)
        return torch.cat([self.pos_embed[:, :1], patches], dim=1)

    def run_blocks(self, tokens: Tensor, start: int, stop: int) -> Tensor:
        """Tokens (B, 1 + N, dim) through blocks `start` to `stop - 1`."""
        for block in self.blocks[start:stop]:
            tokens = block(tokens)
        return tokens

    def intermediate(self, volume: Tensor, blocks: Sequence[int], norm: bool = True) -> list[tuple[Tensor, Tensor]]:
        """Patch tokens (B, N, dim) and class token (B, dim) after the given blocks, in ascending order of blocks.

        Args:
            blocks: 0-based indices; negative ones count from the last block.
            norm: whether the final norm is applied to each.
        """
        tokens = self.embed(volume)
        taken, start = [], 0
        for index in sorted(self._block_index(block) for block in blocks):
            tokens = self.run_blocks(tokens, start, index + 1)
            start = index + 1
            out = self.norm(tokens) if norm else tokens
            taken.append((out[:, 1:], out[:, 0]))
        return taken

    def layer_maps(self, volume: Tensor, blocks: Sequence[int], norm: bool = True) -> list[Tensor]:
        """Maps of the patch tokens after the given blocks, ascending; see `intermediate`."""
        grid = self._grid_of(volume.shape[2:])
        return [patches.transpose(1, 2).unflatten(2, grid) for patches, _ in self.intermediate(volume, blocks, norm)]

    def attention(self, volume: Tensor, block: int = -1) -> Tensor:
        """Attention weights (B, heads, 1 + N, 1 + N) of one block; the default is the last one."""
        index = self._block_index(block)
        return self.blocks[index].attention(self.run_blocks(self.embed(volume), 0, index))  # type: ignore[operator]

    def _grid_of(self, crop: Sequence[int]) -> tuple[int, int, int]:
        x, y, z = (side // self.patch for side in crop)
        return x, y, z

    def _block_index(self, block: int) -> int:
        if not -self.depth <= block < self.depth:
            raise ValueError(
                f"encoder {self.spec.name!r} has no block {block}; allowed: {-self.depth} to {self.depth - 1}"
            )
        return block % self.depth

    def _initialise(self) -> None:
        """3DINO's rules; the patch embedding keeps PyTorch's own, the mask token stays zero."""
        nn.init.trunc_normal_(self.pos_embed, std=INIT_STD)
        nn.init.normal_(self.cls_token, std=1e-6)
        self.apply(init_linear)
