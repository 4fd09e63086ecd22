"""Synthetic weight files of published layouts, for the tests of this room."""

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
