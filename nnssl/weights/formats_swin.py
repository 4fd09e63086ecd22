"""Readers of Swin transformers: SMIT's layout, whose names are ours, and those of the SwinUNETR family."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from nnssl.layers.window import relative_index
from nnssl.weights.layout import Facts, Layout, Reading
from nnssl.weights.sizes import find_swin
from nnssl.weights.unwrap import Tensors, left_out, renamed

# What no shape shows. SMIT, HeartSubSeg and FLARE put windows back in another order than they cut them, and their
# weights are trained with it. MONAI's are of the era before 1.5 (model_swinvit.pt: 0.8.1), when a merge read two cells
# twice; a file trained with MONAI >= 1.5 looks the same: read it with options={"merge_order": "monai15"}.
SMIT_SWITCHES = {"window_reverse": "legacy", "merge_order": "smit", "taps": "post_block", "clamp_window": False}
MONAI_SWITCHES = {
    "window_reverse": "correct",
    "merge_order": "monai_legacy",
    "taps": "pre_block",
    "clamp_window": True,
}
# Heads and decoders that share the encoder's prefix in files without one.
EXTRAS = re.compile(r"(norm|head|head_\w+|conv|convTrans3d|rotation_head|contrastive_head|encoder\d+|decoder\d*|out)\.")
INDEX = "relative_position_index"
MONAI_STAGE = re.compile(r"layers(\d+)\.0\.(0\.(?=blocks|downsample))?")
MONAI_V2_STAGE = re.compile(r"layers\d+c\.")
KERNEL = "patch_embed.proj.weight"
BIAS_TABLE = "blocks.0.attn.relative_position_bias_table"
LARGE_CROP = (128, 128, 128)  # voxels


def read_smit(tensors: Tensors, beside: Mapping[str, Any]) -> Reading:
    """SMIT, HeartSubSeg, FLARE: pretraining students and whole segmentors (`transformer.`)."""
    extras = [name for name in tensors if EXTRAS.match(name)]
    kept = {name: tensor for name, tensor in tensors.items() if not EXTRAS.match(name)}
    taps = "post_block" if "norm0.weight" in kept else "pre_block"
    switches = SMIT_SWITCHES | {"taps": taps}
    found, notes = _without_index(kept)
    facts = Facts(native_crop=_smit_crop(found), options=switches)
    return Reading(found, facts, [*left_out(extras), *notes, _said("SMIT", switches)])


def read_monai(tensors: Tensors, beside: Mapping[str, Any]) -> Reading:
    """SwinUNETR: model_swinvit.pt, its pretraining's output, fine-tuned segmentors, and disruptive autoencoders."""
    if any(MONAI_V2_STAGE.match(name) for name in tensors):
        raise ValueError(
            "it holds a SwinUNETR-V2 (use_v2=True): convolutions stand before each stage, which our Swin does not have"
        )
    extras = [name for name in tensors if EXTRAS.match(name) or name == "mask_token"]
    kept = {name: tensor for name, tensor in tensors.items() if name not in extras}
    names = {name: MONAI_STAGE.sub(_stage, name).replace(".mlp.linear", ".mlp.fc") for name in kept}
    found, notes = _without_index(renamed(names, kept))
    said = _said("MONAI before 1.5", MONAI_SWITCHES)
    return Reading(found, Facts(options=dict(MONAI_SWITCHES)), [*left_out(extras), *notes, said])


def _stage(match: re.Match[str]) -> str:
    return f"layers.{int(match.group(1)) - 1}."


def _said(whose: str, switches: Mapping[str, Any]) -> str:
    return f"read as {whose} trained it: " + ", ".join(f"{key} {value}" for key, value in switches.items())


def _smit_crop(tensors: Tensors) -> tuple[int, int, int] | None:
    """Of the variants with qkv bias, those with a deep third stage (CT-10k, HeartSubSeg) saw crops of 128 voxels."""
    found = find_swin(tensors)
    return LARGE_CROP if found.qkv_bias and found.depths[2] > 2 else None


def _without_index(tensors: Tensors) -> tuple[Tensors, list[str]]:
    """Tensors without the index buffers of the position biases, which are ours or an error."""
    stored = {name: tensor for name, tensor in tensors.items() if name.endswith(INDEX)}
    kept = {name: tensor for name, tensor in tensors.items() if name not in stored}
    if not stored:
        return kept, []
    ours = relative_index(find_swin(kept).window, torch.device("cpu"))
    for name, tensor in stored.items():
        if not torch.equal(tensor.long(), ours):
            raise ValueError(f"{name} orders the cells of a window in another way than Swin does; it cannot be read")
    return kept, [f"{len(stored)} {INDEX} buffers are equal to ours"]


LAYOUTS = {
    "smit": Layout((KERNEL, f"layers.0.{BIAS_TABLE}"), read_smit),
    "monai-swin": Layout((KERNEL, f"layers1.0.{BIAS_TABLE}"), read_monai),
    "disruptive-autoencoder": Layout((KERNEL, f"layers1.0.0.{BIAS_TABLE}"), read_monai),
}
