"""The 3D Swin transformer of SMIT and SwinUNETR: patches of 2 voxels, shifted windows, four merges, a pyramid."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnssl.encoders.base import (
    Encoder,
    EncoderSpec,
    Features,
    IntensityRange,
    check_crop,
    check_line,
    check_token_mask,
    check_volume,
)
from nnssl.layers.window import REVERSE_AXES, Windows
from nnssl.layers.window_attention import SwinBlock

PATCH = 2  # voxels per side
STAGES = 4
TOKEN_STRIDE = 16  # voxels per token of masks and of distillation
CROP_MULTIPLE = 32
NORM_EPS = 1e-5

# The eight cells of a merge in the order of their channels: offsets along X, Y, Z.
MERGE_ORDERS = {
    "smit": ("000", "100", "010", "001", "110", "011", "101", "111"),
    "monai_legacy": ("000", "100", "010", "001", "101", "010", "001", "111"),  # up to 1.4; two cells twice, two never
    "monai15": ("000", "100", "010", "001", "110", "101", "011", "111"),
    "v2": ("000", "001", "010", "011", "100", "101", "110", "111"),  # "mergingv2" of MONAI
}
TAPS = ("post_block", "pre_block")


@dataclass(frozen=True)
class SwinShape:
    """Size and conventions of a Swin transformer."""

    width: int  # channels after the patch embedding; doubled by every merge
    depths: tuple[int, ...]  # blocks of the four stages
    heads: tuple[int, ...]
    window: int  # tokens per side
    native_side: int  # voxels per side of the default native crop
    qkv_bias: bool = False
    patch_norm: bool = True  # LayerNorm after the patch embedding
    window_reverse: str = "correct"  # "legacy": the permutation of SMIT's published weights
    merge_order: str = "smit"
    taps: str = "post_block"  # maps after a stage's blocks (SMIT) or before them ("pre_block", MONAI)
    clamp_window: bool = False  # True: windows shrink to small grids (MONAI); False: grids are padded (SMIT)
    intensity_window: tuple[float, float] = (-500.0, 500.0)  # Hounsfield units, mapped to [0, 1]
    native_spacing: tuple[float, float, float] | None = (1.5, 1.5, 2.0)  # mm
    input_channels: int = 1  # image channels that enter together

    def __post_init__(self) -> None:
        check_line(self)
        for key, value, known in (
            ("window_reverse", self.window_reverse, REVERSE_AXES),
            ("merge_order", self.merge_order, MERGE_ORDERS),
            ("taps", self.taps, TAPS),
        ):
            if value not in known:
                raise ValueError(f"Swin with {key} {value!r}: known are {', '.join(known)}")
        for key, values in (("depths", self.depths), ("heads", self.heads)):
            if len(values) != STAGES:
                raise ValueError(f"Swin with {key} {list(values)}: give one number for each of the {STAGES} stages")

    def spec(
        self, name: str, native_crop: tuple[int, int, int] | None, intensity: IntensityRange | None
    ) -> EncoderSpec:
        """Facts about the transformer; no parameter depends on the native crop."""
        spec = EncoderSpec(
            name,
            tuple(self.width * 2**stage for stage in range(STAGES + 1)),
            tuple(PATCH * 2**stage for stage in range(STAGES + 1)),
            CROP_MULTIPLE,
            native_crop or (self.native_side,) * 3,
            native_spacing=self.native_spacing,
            intensity=intensity or IntensityRange("window", *self.intensity_window, encoder_range=(0.0, 1.0)),
            family="swin",
            depth=sum(self.depths),
            token_stride=TOKEN_STRIDE,
            token_channels=8 * self.width,
            input_channels=self.input_channels,
        )
        check_crop(spec, spec.native_crop)
        return spec

    def build(self, spec: EncoderSpec, drop_path: float) -> "SwinTransformer":
        """A freshly initialised transformer."""
        return SwinTransformer(spec, self, drop_path=drop_path)


class PatchEmbed(nn.Module):
    """One linear map per cubic patch, then a LayerNorm (SMIT) or none (MONAI)."""

    def __init__(self, shape: SwinShape) -> None:
        super().__init__()
        self.proj = nn.Conv3d(shape.input_channels, shape.width, kernel_size=PATCH, stride=PATCH)
        self.norm = nn.LayerNorm(shape.width) if shape.patch_norm else nn.Identity()

    def forward(self, volume: Tensor) -> Tensor:
        """(B, input_channels, X, Y, Z) -> (B, X/2, Y/2, Z/2, width)."""
        return self.norm(self.proj(volume).movedim(1, -1).contiguous().to(self.proj.weight.dtype))


class PatchMerging(nn.Module):
    """Eight neighbouring cells become one of twice the width."""

    def __init__(self, dim: int, order: str) -> None:
        super().__init__()
        self.offsets = [tuple(int(digit) for digit in slot) for slot in MERGE_ORDERS[order]]
        self.reduction = nn.Linear(8 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(8 * dim)

    def forward(self, cells: Tensor) -> Tensor:
        """(B, X, Y, Z, dim) -> (B, X/2, Y/2, Z/2, 2 dim)."""
        merged = torch.cat([cells[:, x::2, y::2, z::2] for x, y, z in self.offsets], dim=-1)
        return self.reduction(self.norm(merged)).to(cells.dtype)


class Stage(nn.Module):
    """Blocks of one resolution, every second one shifted, and the merge that ends them."""

    def __init__(self, shape: SwinShape, stage: int, rates: list[float]) -> None:
        super().__init__()
        dim = shape.width * 2**stage
        self.blocks = nn.ModuleList(
            SwinBlock(
                dim,
                shape.heads[stage],
                windows=Windows(shape.window, index % 2 == 1, shape.window_reverse, shape.clamp_window),
                qkv_bias=shape.qkv_bias,
                drop_path=rate,
            )
            for index, rate in enumerate(rates)
        )
        self.downsample = PatchMerging(dim, shape.merge_order)

    def forward(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Cells (B, X, Y, Z, dim) after the blocks, and after the merge."""
        for block in self.blocks:
            cells = block(cells)
        return cells, self.downsample(cells)


class SwinTransformer(Encoder):
    """Swin for volumes, with the parameter names of SMIT's published weights (`layers.<i>.blocks.<j>.attn.qkv.weight`).

    Linear layers keep PyTorch's initialisation as in the reference, bias tables are truncated normal (std 0.02).

    Args:
        spec: facts, from `shape.spec`.
        shape: size and conventions.
        drop_path: stochastic depth rate of the last block, in [0, 1); it rises linearly from 0 (SMIT: 0.3).
    """

    def __init__(self, spec: EncoderSpec, shape: SwinShape, *, drop_path: float = 0.0) -> None:
        super().__init__()
        if not 0 <= drop_path < 1:
            raise ValueError(f"building {spec.name!r}: drop_path {drop_path} must lie in [0, 1)")
        self.spec, self.taps = spec, shape.taps
        self.mask_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.patch_embed = PatchEmbed(shape)
        self.layers = nn.ModuleList(Stage(shape, stage, rates) for stage, rates in enumerate(_rates(shape, drop_path)))
        if shape.taps == "post_block":
            for stage in range(STAGES):
                self.add_module(f"norm{stage}", nn.LayerNorm(spec.channels[stage]))

    @property
    def blocks_in_order(self) -> list[nn.Module]:
        """All blocks in the order of the data."""
        return [block for stage in self.layers for block in stage.blocks]  # type: ignore[union-attr]

    def forward(self, volume: Tensor, token_mask: Tensor | None = None) -> Features:
        """Encode volumes; five maps at strides 2 to 32."""
        check_volume(self.spec, volume)
        cells = embedding = self.patch_embed(volume)
        if token_mask is not None:
            check_token_mask(self.spec, token_mask, volume)
            cells = embedding = self._hide(embedding, token_mask)
        mixed, merged = [], []
        for stage in self.layers:
            out, cells = stage(cells)
            mixed.append(out)
            merged.append(cells)
        summary = _plain_norm(cells).flatten(1, 3).mean(1)
        patch = self._affine(mixed[-1], STAGES - 1)
        if self.taps == "post_block":
            maps = [*(self._affine(out, stage) for stage, out in enumerate(mixed[:-1])), patch, cells]
        else:
            maps = [_plain_norm(out) for out in (embedding, *merged)]
        tokens = {"patch": patch.flatten(1, 3), "distill": merged[2].flatten(1, 3)}
        return Features(maps=[out.movedim(-1, 1) for out in maps], summary=summary, tokens=tokens)

    def _affine(self, cells: Tensor, stage: int) -> Tensor:
        return self.get_submodule(f"norm{stage}")(cells) if self.taps == "post_block" else _plain_norm(cells)

    def _hide(self, cells: Tensor, token_mask: Tensor) -> Tensor:
        """Cells (B, X, Y, Z, width) with the mask token in the 8^3 cells of every hidden token."""
        across = TOKEN_STRIDE // PATCH
        x, y, z = (side // across for side in cells.shape[1:4])
        hidden = token_mask.view(-1, x, 1, y, 1, z, 1, 1)
        blocks = cells.unflatten(3, (z, across)).unflatten(2, (y, across)).unflatten(1, (x, across))
        return torch.where(hidden, self.mask_token.view(-1), blocks).reshape(cells.shape)


def _rates(shape: SwinShape, highest: float) -> list[list[float]]:
    """Stochastic depth rates of the blocks of each stage, rising linearly over all blocks from 0 to the highest."""
    last = sum(shape.depths) - 1
    rates = iter(highest * block / last for block in range(last + 1))
    return [[next(rates) for _ in range(depth)] for depth in shape.depths]


def _plain_norm(cells: Tensor) -> Tensor:
    """LayerNorm over the last axis without parameters."""
    return F.layer_norm(cells, cells.shape[-1:], eps=NORM_EPS)
