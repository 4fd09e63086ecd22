"""What encoders keep for the backward pass and how many parameters they have, by family and size.

Assumptions, in bytes per token (or voxel of a map) and channel of one block, activations in bf16 under autocast:
- ViT: 34 when attention is not stored (Korthikanti et al. 2022, arXiv:2205.05198, without the attention map, as
  PyTorch's fused attention does); 42 were counted on ViT-Ti;
- Primus: 60 (gated MLP, rotated queries and keys; counted on Primus-S);
- Swin: 44, because its residual stream is float32, and 2.2 per voxel and channel of the first stage for the patch
  embedding and the merges (counted on swin_tiny, smit_96 and swin_unetr; padding to whole windows adds up to a tenth);
- ResEnc: 10 for a residual block of two convolutions, 4 for the stem.
"""

import json
from dataclasses import dataclass
from functools import cache

import torch

from nnssl.config import from_dict, to_dict
from nnssl.encoders import ENCODERS, build_encoder
from nnssl.encoders.base import EncoderSpec
from nnssl.encoders.resenc import ResEncShape
from nnssl.encoders.swin import SwinShape

TOKEN_BYTES = {"vit": 34, "primus": 60}  # per token, channel and block
SWIN_BYTES, MERGE_BYTES = 44, 2.2  # per cell, channel and block; per voxel and channel of the first stage
BLOCK_BYTES, STEM_BYTES = 10, 4  # per voxel and channel of a ResEnc map


@dataclass(frozen=True)
class EncoderSize:
    """What the formulas of training need to know of an encoder."""

    parameters: int
    bytes_per_voxel: float  # activations kept for the backward pass, per voxel of a crop and pass


def encoder_size(spec: EncoderSpec) -> EncoderSize:
    """Sizes of an encoder with its options."""
    return _encoder_size(spec.name, spec.native_crop, json.dumps(spec.options, sort_keys=True))


@cache
def _encoder_size(name: str, native_crop: tuple[int, int, int], options: str) -> EncoderSize:
    line, changed = ENCODERS[name], json.loads(options)
    shape = from_dict(type(line), to_dict(line) | changed)
    if isinstance(shape, SwinShape):
        return EncoderSize(swin_parameters(shape), _swin_bytes_per_voxel(shape))
    with torch.device("meta"):  # without memory
        encoder = build_encoder(name, native_crop=native_crop, options=changed)
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    if isinstance(shape, ResEncShape):
        return EncoderSize(parameters, _resenc_bytes_per_voxel(shape))
    return EncoderSize(parameters, _token_bytes_per_voxel(encoder.spec, parameters))


def _token_bytes_per_voxel(spec: EncoderSpec, parameters: int) -> float:
    """A plain transformer has about 12 dim^2 parameters per block."""
    dim, patch = spec.channels[-1], spec.strides[-1]
    return TOKEN_BYTES[spec.family] * parameters / (12 * dim) / patch**3


def swin_parameters(shape: SwinShape) -> int:
    """Parameters of a Swin of patch 2, with its mask token: the closed form of its linear layers, tables and norms."""
    first = shape.width
    total = first * (8 * shape.input_channels + 2) + 2 * first * shape.patch_norm  # patch embedding, mask token
    for stage, (depth, heads) in enumerate(zip(shape.depths, shape.heads, strict=True)):
        dim = first * 2**stage
        attention = 4 * dim**2 + dim + 3 * dim * shape.qkv_bias + (2 * shape.window - 1) ** 3 * heads
        block = attention + 8 * dim**2 + 5 * dim + 4 * dim  # MLP, two norms
        merge = 16 * dim**2 + 16 * dim
        total += depth * block + merge + 2 * dim * (shape.taps == "post_block")
    return total


def _swin_bytes_per_voxel(shape: SwinShape) -> float:
    """Each stage has half the cells per axis and twice the width of the one before; the first has stride 2."""
    channels_per_voxel = sum(
        depth * shape.width * 2**stage / 8 ** (stage + 1) for stage, depth in enumerate(shape.depths)
    )
    return MERGE_BYTES * shape.width + SWIN_BYTES * channels_per_voxel


def _resenc_bytes_per_voxel(shape: ResEncShape) -> float:
    blocks = sum(
        depth * width / 8**stage for stage, (depth, width) in enumerate(zip(shape.depths, shape.widths, strict=True))
    )
    return STEM_BYTES * shape.widths[0] + BLOCK_BYTES * blocks
