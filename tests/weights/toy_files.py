"""Synthetic weight files of published layouts, for the tests of this room."""

import itertools
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnssl.encoders.base import EncoderSpec
from nnssl.encoders.vit import VisionTransformer
from nnssl.weights.header import EncoderHeader
from tests.rules import rule_tensor

DEPTH, CHUNK = 4, 2


def toy_vit(native: tuple[int, int, int] = (24, 24, 24), **sizes: int) -> VisionTransformer:
    """A tiny transformer (dim 16, depth 4, patch 8) with random weights."""
    dim, depth, patch = sizes.get("dim", 16), sizes.get("depth", DEPTH), sizes.get("patch", 8)
    spec = EncoderSpec("vit_toy_8", (dim,), (patch,), patch, native)
    return VisionTransformer(spec, depth, heads=2).eval()


def toy_header(encoder: VisionTransformer, **settings: Any) -> EncoderHeader:
    """A header that fits an encoder."""
    return EncoderHeader(encoder.spec.name, encoder.spec.native_crop, encoder.spec.intensity, **settings)


def published_names(names: list[str], *, chunk: int) -> dict[str, str]:
    """Flat name -> chunked name of the published files (`blocks.<i // chunk>.<i>`); chunk 0 keeps names flat."""
    result = {}
    for name in names:
        parts = name.split(".")
        chunked = parts[0] == "blocks" and chunk > 0
        result[name] = ".".join(["blocks", str(int(parts[1]) // chunk), *parts[1:]]) if chunked else name
    return result


def rule_state(encoder: VisionTransformer, *, chunk: int) -> dict[str, Tensor]:
    """Rule-made tensors of an encoder under published names; values depend on the chunked name of chunk 2."""
    shapes = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    keys = published_names(list(shapes), chunk=CHUNK)
    names = published_names(list(shapes), chunk=chunk)
    return {names[name]: torch.from_numpy(rule_tensor(keys[name], shape)) for name, shape in shapes.items()}


def heads() -> dict[str, Tensor]:
    """The 16 tensors of the two projection heads, small."""
    layers = [f"mlp.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")]
    names = [*layers, "last_layer.weight_g", "last_layer.weight_v"]
    return {f"{head}.{name}": torch.ones(2) for head in ("dino_head", "ibot_head") for name in names}


def teacher_file(path: Path, encoder: VisionTransformer, *, chunk: int = CHUNK) -> Path:
    """The published layout: {"teacher": backbone.* and both heads}."""
    backbone = {f"backbone.{name}": tensor for name, tensor in rule_state(encoder, chunk=chunk).items()}
    torch.save({"teacher": {**backbone, **heads()}}, path)
    return path


def swin_shapes(
    width: int, depths: Sequence[int], heads: Sequence[int], window: int, *, qkv_bias: bool
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a pretrained SMIT encoder as they are documented."""
    shapes: dict[str, tuple[int, ...]] = {"mask_token": (1, 1, width)}
    shapes |= {"patch_embed.proj.weight": (width, 1, 2, 2, 2), "patch_embed.proj.bias": (width,)}
    shapes |= _norm("patch_embed.norm", width)
    for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
        dim = width * 2**stage
        for block in range(depth):
            shapes |= _swin_block(f"layers.{stage}.blocks.{block}", dim, ((2 * window - 1) ** 3, count), qkv_bias)
        shapes |= {f"layers.{stage}.downsample.reduction.weight": (2 * dim, 8 * dim)}
        shapes |= _norm(f"layers.{stage}.downsample.norm", 8 * dim) | _norm(f"norm{stage}", dim)
    return shapes


def swin_tensors(
    width: int, depths: Sequence[int], heads: Sequence[int], window: int, *, qkv_bias: bool
) -> dict[str, Tensor]:
    """Rule-made values of such an encoder, and its index buffers."""
    shapes = swin_shapes(width, depths, heads, window, qkv_bias=qkv_bias)
    tensors = {name: torch.from_numpy(rule_tensor(name, shape)) for name, shape in shapes.items()}
    tables = [name for name in tensors if name.endswith("bias_table")]
    return tensors | {name.replace("bias_table", "index"): window_index(window) for name in tables}


@cache
def window_index(window: int) -> Tensor:
    """relative_position_index of the published files, one pair of cells at a time."""
    cells = list(itertools.product(range(window), repeat=3))
    side = 2 * window - 1
    rows = [
        [
            sum((a - b + window - 1) * side ** (2 - axis) for axis, (a, b) in enumerate(zip(i, j, strict=True)))
            for j in cells
        ]
        for i in cells
    ]
    return torch.tensor(rows)


def monai_names(tensors: dict[str, Tensor], *, mlp: str = "linear", stage: str = "layers{}.0.") -> dict[str, Tensor]:
    """SMIT's tensors under the names of the SwinUNETR family, which has no patch norm, mask token and norm0..3."""
    left = ("mask_token", "patch_embed.norm", "norm0", "norm1", "norm2", "norm3")
    renamed = {}
    for name, tensor in tensors.items():
        if not name.startswith(left):
            new = re.sub(r"^layers\.(\d)\.", lambda match: stage.format(int(match.group(1)) + 1), name)
            renamed[new.replace(".mlp.fc", f".mlp.{mlp}")] = tensor
    return renamed


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors with a prefix before every name."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _norm(name: str, dim: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def _swin_block(name: str, dim: int, table: tuple[int, int], qkv_bias: bool) -> dict[str, tuple[int, ...]]:
    return {
        **_norm(f"{name}.norm1", dim),
        f"{name}.attn.relative_position_bias_table": table,
        f"{name}.attn.qkv.weight": (3 * dim, dim),
        **({f"{name}.attn.qkv.bias": (3 * dim,)} if qkv_bias else {}),
        f"{name}.attn.proj.weight": (dim, dim),
        f"{name}.attn.proj.bias": (dim,),
        **_norm(f"{name}.norm2", dim),
        f"{name}.mlp.fc1.weight": (4 * dim, dim),
        f"{name}.mlp.fc1.bias": (4 * dim,),
        f"{name}.mlp.fc2.weight": (dim, 4 * dim),
        f"{name}.mlp.fc2.bias": (dim,),
    }
