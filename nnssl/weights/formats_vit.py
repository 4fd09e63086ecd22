"""Readers of vision transformers: 3DINO's layout, which is ours, and MONAI's ViT where it is the same network."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from nnssl.weights.layout import Layout, Reading
from nnssl.weights.unwrap import Tensors, left_out, renamed

HEADS = ("dino_head.", "ibot_head.", "head.")
CHUNKED = re.compile(r"blocks\.\d+\.(\d+\.\D.*)")
MONAI_KERNEL = "patch_embedding.patch_embeddings.weight"
MONAI_NAMES = (
    ("patch_embedding.patch_embeddings.", "patch_embed.proj."),
    (".attn.out_proj.", ".attn.proj."),
    (".mlp.linear", ".mlp.fc"),
)
MONAI_UNUSED = re.compile(
    r"blocks\.\d+\.(norm_cross_attn|cross_attn)\.|classification_head\.|patch_embedding\.position"
)


def read_3dino(tensors: Tensors, beside: Mapping[str, Any]) -> Reading:
    """3DINO: blocks are flat (`blocks.<i>`) or in chunks (`blocks.<chunk>.<i>`, i counting over all chunks)."""
    heads = [name for name in tensors if name.startswith(HEADS)]
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(HEADS)}
    return Reading(renamed({name: CHUNKED.sub(r"blocks.\1", name) for name in kept}, kept), notes=left_out(heads))


def read_monai_vit(tensors: Tensors, beside: Mapping[str, Any]) -> Reading:
    """MONAI's ViT with a class token: the same network, but for layer scales (1) and the norms' eps (1e-5, ours 1e-6).

    Its position table has no entry for the class token (0 here), and its qkv layers have no bias by default.
    """
    if "cls_token" not in tensors:
        raise ValueError(
            "it holds a MONAI ViT (UNETR, ViTAutoEnc) without a class token, whose attention our ViT cannot "
            "reproduce: ours attends to a class token; only MONAI ViTs with classification=True are read"
        )
    if MONAI_KERNEL not in tensors:
        raise ValueError("it holds a MONAI ViT with a perceptron patch embedding; only convolutional ones are read")
    names = {name: _our_name(name) for name in tensors if not MONAI_UNUSED.match(name)}
    found = renamed(names, tensors)
    table = tensors["patch_embedding.position_embeddings"]
    dim = table.shape[-1]
    found["pos_embed"] = torch.cat([torch.zeros(1, 1, dim, dtype=table.dtype), table], dim=1)
    for index in {name.split(".")[1] for name in found if name.startswith("blocks.")}:
        found.setdefault(f"blocks.{index}.attn.qkv.bias", torch.zeros(3 * dim))
        found |= {f"blocks.{index}.ls{branch}.gamma": torch.ones(dim) for branch in (1, 2)}
    unused = [name for name in tensors if MONAI_UNUSED.match(name) and "position" not in name]
    return Reading(found, notes=["layer scales set to 1 (MONAI has none)", *left_out(unused)])


def _our_name(name: str) -> str:
    for theirs, ours in MONAI_NAMES:
        name = name.replace(theirs, ours)
    return name


LAYOUTS = {
    "3dino": Layout(("patch_embed.proj.weight", "cls_token", "pos_embed"), read_3dino),
    "monai-vit": Layout(("patch_embedding.position_embeddings", "blocks.0.attn.qkv.weight"), read_monai_vit),
}
