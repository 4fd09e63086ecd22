"""Encoders for other packages: nnU-Net's fine-tuning and MONAI's SwinUNETR."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnssl.config import to_dict
from nnssl.encoders import ENCODERS
from nnssl.encoders.base import Encoder
from nnssl.encoders.exported_names import BODY, ENTRY, NETWORK_CLASS, exported_name
from nnssl.encoders.foreign import Z_SCORE_ENDS
from nnssl.encoders.swin import MERGE_ORDERS
from nnssl.layers.window import relative_index
from nnssl.paths import atomic_write
from nnssl.weights.encoder_file import check_header, save_encoder
from nnssl.weights.formats_nnunet import HEADER, PLAN
from nnssl.weights.header import EncoderHeader, header_to_text
from nnssl.weights.sizes import FAMILIES
from nnssl.weights.sources import citation

CONFIGURATION = "pretraining"
UNKNOWN_SPACING = (1.0, 1.0, 1.0)  # mm; nnU-Net's planner stops at a spacing of None
MONAI_MERGES = {"v2": "mergingv2"}  # the others are permuted to monai15, which MONAI calls "merging"
STRIDE_OF_STAGES = (2, 4, 8, 16)  # voxels per cell while a stage's blocks work


def export_encoder(path: Path | str, encoder: Encoder, header: EncoderHeader, *, target: str) -> str:
    """Write an encoder for another package and return how to use the file there, in one line.

    Args:
        target: "nnssl", "monai" or "nnunet".

    Raises:
        ValueError: the target cannot compute the same features; the message says why. Nothing is written.
    """
    if target not in TARGETS:
        raise ValueError(f"exporting to {target!r}: known formats are {', '.join(TARGETS)}")
    return TARGETS[target](Path(path), encoder, header)


def nnunet_checkpoint(encoder: Encoder, header: EncoderHeader) -> dict[str, Any]:
    """What `nnUNetv2_preprocess_like_nnssl` and `nnUNetv2_train_pretrained` read; the rules are in docs/weights.md."""
    check_header(encoder, header)
    spec = encoder.spec
    first = FAMILIES[spec.family].kernel.removesuffix(".weight")
    stem = first.partition(".")[0]
    crop = list(spec.native_crop)
    plan = {
        "architecture_plans": {
            "arch_class_name": NETWORK_CLASS,
            "arch_kwargs": {
                "encoder": spec.name,
                "native_crop": crop,
                "encoder_options": dict(spec.options),
                "intensity": to_dict(header.intensity),
                "z_score_ends": list(Z_SCORE_ENDS),
            },
            "arch_kwargs_requiring_import": [],
        },
        "pretrain_plan": {
            "configurations": {
                CONFIGURATION: {
                    "spacing": list(header.spacing_mm or spec.native_spacing or UNKNOWN_SPACING),
                    "patch_size": crop,
                }
            }
        },
        "pretrain_patch_size": crop,
        "pretrain_num_input_channels": spec.input_channels,
        "recommended_downstream_patchsize": crop,
        "key_to_encoder": BODY,
        "key_to_stem": f"{ENTRY}.{stem}",
        "keys_to_in_proj": [f"{ENTRY}.{first}"],
        "key_to_lpe": None,  # our network resamples positions itself, for any patch size
    }
    return {
        "network_weights": {exported_name(name, stem): tensor for name, tensor in _tensors(encoder).items()},
        PLAN: plan,
        "citations": [{"type": "Pretraining", "name": spec.name, "apa_citations": [citation(header, spec.family)]}],
        HEADER: header_to_text(header),
    }


def monai_swin_state(encoder: Encoder) -> dict[str, Tensor]:
    """State dict of MONAI's `SwinUNETR(...).swinViT`, which computes the same hidden states.

    Merges in SMIT's order become MONAI's by permuting what the eight cells contribute, absent qkv biases become zeros.

    Raises:
        ValueError: MONAI's network computes something else; the message lists why.
    """
    shape = swin_shape(encoder)
    reasons = _why_not_monai(encoder, shape)
    if reasons:
        raise ValueError(f"exporting {encoder.spec.name!r} to MONAI: {'; '.join(reasons)}")
    state: dict[str, Tensor] = {}
    for name, tensor in _tensors(encoder).items():
        if name == "mask_token":
            continue
        value = _permuted_merge(tensor, shape["merge_order"]) if ".downsample." in name else tensor
        state[_monai_name(name)] = value
        if name.endswith(".attn.qkv.weight") and not shape["qkv_bias"]:
            state[_monai_name(name).replace("weight", "bias")] = torch.zeros(tensor.shape[0])
        if name.endswith("relative_position_bias_table"):
            index = relative_index(shape["window"], torch.device("cpu"))
            state[_monai_name(name).replace("bias_table", "index")] = index
    return state


def swin_shape(encoder: Encoder) -> dict[str, Any]:
    """All fields of a Swin's line in the table, with the encoder's options."""
    spec = encoder.spec
    if spec.family != "swin":
        raise ValueError(f"exporting {spec.name!r} to MONAI: {MONAI_LACKS[spec.family]}")
    return to_dict(ENCODERS[spec.name]) | spec.options


MONAI_LACKS = {
    "vit": "its ViT has no layer scale, no position of the class token and another eps in its norms (1e-5, here 1e-6)",
    "primus": "it has no network with rotary positions and gated MLPs",
    "resenc": "it has no residual encoder with this shortcut (average pooling, then a convolution)",
}


def _why_not_monai(encoder: Encoder, shape: dict[str, Any]) -> list[str]:
    reasons = []
    if shape["window_reverse"] != "correct":
        reasons.append("its windows are put back in SMIT's permuted order (window_reverse 'legacy'), MONAI's are not")
    if shape["taps"] != "pre_block":
        reasons.append(
            "its maps are taken after the blocks through norms with parameters (taps 'post_block'), "
            "MONAI's before them without"
        )
    if shape["merge_order"] == "monai_legacy":
        reasons.append("its merges read two cells twice (merge_order 'monai_legacy'), as MONAI before 1.5 did")
    smallest = min(encoder.spec.native_crop) // STRIDE_OF_STAGES[-1]
    if not shape["clamp_window"] and smallest <= shape["window"]:
        reasons.append(
            f"at its crop {encoder.spec.native_crop} the deepest grid has {smallest} cells a side, where MONAI shrinks "
            f"a window of {shape['window']} and this encoder pads the grid (clamp_window False)"
        )
    return reasons


def _monai_name(name: str) -> str:
    """SMIT's names are ours: layers.<i>.blocks -> layers<i+1>.0.blocks, mlp.fc1 -> mlp.linear1."""
    if not name.startswith("layers."):
        return name
    _, stage, rest = name.split(".", 2)
    return f"layers{int(stage) + 1}.0.{rest.replace('.mlp.fc', '.mlp.linear')}"


def _permuted_merge(tensor: Tensor, order: str) -> Tensor:
    """Norm (8C) or reduction (2C, 8C) of a merge, its eight parts in the order of MONAI's "merging" from 1.5 on."""
    if order in MONAI_MERGES:
        return tensor
    ours = MERGE_ORDERS[order]
    parts = tensor.chunk(len(ours), dim=-1)
    return torch.cat([parts[ours.index(cell)] for cell in MERGE_ORDERS["monai15"]], dim=-1)


def _tensors(encoder: Encoder) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}


def _save(content: Any, path: Path) -> None:
    with atomic_write(path) as temporary:
        torch.save(content, temporary)


def _export_nnssl(path: Path, encoder: Encoder, header: EncoderHeader) -> str:
    save_encoder(path, encoder, header)
    return f"nnssl_train ... -pretrained_weights {path.name}"


def _export_nnunet(path: Path, encoder: Encoder, header: EncoderHeader) -> str:
    _save(nnunet_checkpoint(encoder, header), path)
    return (
        "nnU-Net's development version: nnUNetv2_preprocess_like_nnssl -d ID -n NAME "
        f"-pc {path.name}, then nnUNetv2_train_pretrained; nnssl must be installed there"
    )


def _export_monai(path: Path, encoder: Encoder, header: EncoderHeader) -> str:
    shape, state = swin_shape(encoder), monai_swin_state(encoder)
    _save(state, path)
    merge = MONAI_MERGES.get(shape["merge_order"], "merging")
    back = f"merge_order={shape['merge_order'] if merge == 'mergingv2' else 'monai15'}"
    back += "" if shape["clamp_window"] else " clamp_window=false"
    return (
        f"SwinUNETR(in_channels={encoder.spec.input_channels}, out_channels=..., depths={tuple(shape['depths'])}, "
        f"num_heads={tuple(shape['heads'])}, window_size={shape['window']}, feature_size={shape['width']}, "
        f"patch_norm={shape['patch_norm']}, downsample={merge!r})"
        f".swinViT.load_state_dict(torch.load({path.name!r})), MONAI 1.5 or later; nnssl reads it with --set {back}"
    )


TARGETS: dict[str, Callable[[Path, Encoder, EncoderHeader], str]] = {
    "nnssl": _export_nnssl,
    "monai": _export_monai,
    "nnunet": _export_nnunet,
}
