"""What decoders keep for the backward pass and how many parameters they train, counted from their residual blocks.

A residual block (Hatamizadeh et al. 2022, arXiv:2103.10504) in bf16 keeps its input and four maps of its output's
width (two normalisations' inputs, two activations), and a fifth where the widths differ: 2 bytes each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from nnssl.networks.linear import COARSEST
from nnssl.networks.unet import BASE_WIDTH, MAX_WIDTH
from nnssl.planners.network import NetworkPlan

HALF = 2  # bytes of a bf16 value
BLOCK_MAPS = 4
LAYERS = 4  # of a plain transformer that UNETR and the linear decoder read
MERGE_BYTES = 3 * HALF  # per channel of a tapped layer: stacked channels aside, before and after the GELU
LINEAR_BYTES = 3 * HALF  # per stacked channel: resampled, concatenated, normalised


@dataclass(frozen=True)
class ResidualSize:
    """One residual block of a decoder; `upsampled` channels come through a transposed convolution before it."""

    inputs: int
    outputs: int
    stride: int  # voxels
    upsampled: int = 0
    recomputed: bool = False  # only its input is kept

    @property
    def bytes_per_voxel(self) -> float:
        """Kept per voxel of the crop."""
        if self.recomputed:
            return HALF * self.inputs / self.stride**3
        maps = BLOCK_MAPS + (self.inputs != self.outputs)
        return HALF * (self.inputs + maps * self.outputs) / self.stride**3

    @property
    def parameters(self) -> int:
        """Two 3x3x3 convolutions, the 1x1x1 shortcut where widths differ, and the 2x2x2 up-sampling."""
        shortcut = self.inputs * self.outputs if self.inputs != self.outputs else 0
        up = 8 * self.upsampled * self.outputs
        return 27 * self.outputs * (self.inputs + self.outputs) + shortcut + up


def decoder_bytes_per_voxel(network: NetworkPlan) -> float:
    """Kept for the backward pass per voxel of the crop, without the logits and without a ViT-Adapter."""
    kept = sum(block.bytes_per_voxel for block in residual_sizes(network))
    return kept + _neck_bytes_per_voxel(network) + _linear_bytes_per_voxel(network)


def decoder_parameters(network: NetworkPlan) -> int:
    """Trained parameters of decoder and channel merges, without a ViT-Adapter; norms and biases are not counted."""
    spec, passes = network.encoder, network.passes
    merged = [width**2 * passes for width in spec.channels] if passes > 1 and spec.is_pyramid else []
    if not spec.is_pyramid:
        merged = [spec.channels[0] ** 2 * passes] * (1 if network.decoder == "linear" else LAYERS)
    return sum(merged) + sum(block.parameters for block in residual_sizes(network))


def residual_sizes(network: NetworkPlan) -> list[ResidualSize]:
    """The residual blocks of a decoder; the linear decoder has none.

    Left out: what a ViT-Adapter under the U-Net needs (`memory`), and the first up-sampling of UNETR's layers.
    """
    spec, image = network.encoder, network.input_channels
    if network.decoder == "linear":
        return []
    if network.decoder == "swin_unetr":
        return _swin_unetr(image, spec.channels)
    if network.decoder == "unetr":
        return _unetr(image, spec.channels[0], spec.strides[0])
    return _unet(image, spec.channels, spec.strides)


def _swin_unetr(image: int, channels: Sequence[int]) -> list[ResidualSize]:
    half, quarter, eighth, sixteenth, bottleneck = channels
    skips = [
        (image, half, 1),
        (half, half, 2),
        (quarter, quarter, 4),
        (eighth, eighth, 8),
        (bottleneck, bottleneck, 32),
    ]
    ups = [
        (bottleneck, sixteenth, 16),
        (sixteenth, eighth, 8),
        (eighth, quarter, 4),
        (quarter, half, 2),
        (half, half, 1),
    ]
    return [*(ResidualSize(*skip) for skip in skips), *(_up(*up) for up in ups)]


def _unet(image: int, channels: Sequence[int], strides: Sequence[int]) -> list[ResidualSize]:
    widths = [min(BASE_WIDTH * 2**level, MAX_WIDTH) for level in range(len(channels))]
    skips = [ResidualSize(*sizes) for sizes in zip(channels, widths, strides, strict=True)]
    levels = list(zip(widths, strides, strict=True))
    if strides[0] > 1:
        levels.insert(0, (BASE_WIDTH, 1))
    ups = [_up(coarse, fine, stride) for (fine, stride), (coarse, _) in pairwise(levels)]
    return [ResidualSize(image, BASE_WIDTH, 1, recomputed=True), *skips, *ups]


def _unetr(image: int, dim: int, patch: int) -> list[ResidualSize]:
    """Layers climb to strides p/8, p/4, p/2 in 3, 2, 1 steps; all but the first step end in a residual block."""
    widths = [BASE_WIDTH * patch // share for share in (8, 4, 2)]
    climbs = [
        ResidualSize(width, width, patch // 2 // 2**step, upsampled=width)
        for width, steps in zip(widths, (3, 2, 1), strict=True)
        for step in range(1, steps)
    ]
    levels = [(width, patch // share) for width, share in zip(widths, (8, 4, 2), strict=True)]
    if levels[0][1] > 1:
        levels.insert(0, (BASE_WIDTH, 1))
    ups = [_up(coarse, fine, stride) for (fine, stride), (coarse, _) in pairwise([*levels, (dim, patch)])]
    return [ResidualSize(image, BASE_WIDTH, 1), *climbs, *ups]


def _up(coarse: int, fine: int, stride: int) -> ResidualSize:
    return ResidualSize(2 * fine, fine, stride, upsampled=coarse)


def _neck_bytes_per_voxel(network: NetworkPlan) -> float:
    """Merges of image channels: stacked inputs, and for plain transformers what the GELU keeps."""
    spec, passes = network.encoder, network.passes
    if spec.is_pyramid:
        stacked = HALF * passes if passes > 1 else 0
        return sum(stacked * width / stride**3 for width, stride in zip(spec.channels, spec.strides, strict=True))
    return LAYERS * spec.channels[0] * (HALF * passes + MERGE_BYTES) / spec.strides[0] ** 3


def _linear_bytes_per_voxel(network: NetworkPlan) -> float:
    if network.decoder != "linear":
        return 0.0
    spec = network.encoder
    plain = not spec.is_pyramid
    width = LAYERS * spec.channels[0] if plain else sum(spec.channels[-COARSEST:])
    finest = spec.strides[0] if plain else spec.strides[-COARSEST]
    return LINEAR_BYTES * width / finest**3
