"""Readers of MIC-DKFZ's encoders: Primus and ResEnc-L, from their pretraining (OpenMind) or from nnU-Net."""

from collections.abc import Mapping
from typing import Any

from nnssl.weights.layout import Crop, Facts, Layout, Reading
from nnssl.weights.unwrap import Tensors, left_out, shown

PLAN = "nnssl_adaptation_plan"  # MIC-DKFZ's name for what nnU-Net's fine-tuning reads
ARCHITECTURES = {
    "primus": ("PrimusS", "PrimusB", "PrimusM", "PrimusL"),
    "resenc": ("ResEncL", "NoSkipResEncL", "ResidualEncoderUNet"),
}
AXES_SAID = "MIC-DKFZ trains on arrays as stored (Z, Y, X), here the axes are X, Y, Z"
PRIMUS_PARTS = ("eva.", "down_projection.", "mask_token", "register_tokens")
COMPUTED = "eva.rope."  # rotary positions, which some versions save
RESENC_PARTS = ("stem.", "stages.")
TWICE = ".all_modules."  # the second name of every convolution and norm


def read_primus(tensors: Tensors, beside: Mapping[str, Any]) -> Reading:
    """Primus: its positions count the axes in an order that only the trainer's name tells.

    Files of MIC-DKFZ's pretraining carry a `trainer_name`; all of them but SimMIM's were trained by its EvaMAE module,
    which counts axis 1 before axis 0 ("hwd"). Files of nnU-Net and of other packages count as
    dynamic-network-architectures does since 2025-06-24 ("whd").
    """
    if "down_projection.proj.weight" not in tensors:
        raise ValueError("it holds a Primus V2 or V3, whose patch embedding is deeper; known: Primus S, B, M, L")
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if name.startswith(PRIMUS_PARTS) and not name.startswith(COMPUTED)
    }
    trainer = _text(beside.get("trainer_name"))
    swapped = PLAN in beside and trainer != "" and "simmim" not in trainer.lower()
    order = "hwd" if swapped else "whd"
    said = f"positions count axes in the order {order}" + (f", as trainer {trainer} does" if trainer else "")
    crop = _plan_crop(beside)
    _check_architecture(beside, "primus")
    notes = [*left_out([name for name in tensors if name not in kept]), said, AXES_SAID]
    return Reading(kept, Facts(native_crop=crop, options={"axis_order": order}), notes)


def read_resenc(tensors: Tensors, beside: Mapping[str, Any]) -> Reading:
    """ResEnc: stem and stages, each tensor once; strides of 2 per stage, which no tensor shows, are checked by plan."""
    _check_architecture(beside, "resenc")
    for words in (_architecture(beside).get("arch_kwargs") or {}, _planned_words(beside)):
        _check_strides(words)
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith(RESENC_PARTS) and TWICE not in name}
    twice = sum(TWICE in name for name in tensors)
    others = [name for name in tensors if not name.startswith(RESENC_PARTS)]
    notes = [*left_out(others), *([f"{twice} tensors are stored twice"] if twice else []), AXES_SAID]
    return Reading(kept, Facts(native_crop=_plan_crop(beside)), notes)


def _architecture(beside: Mapping[str, Any]) -> Mapping[str, Any]:
    plan = beside.get(PLAN)
    found = plan.get("architecture_plans") if isinstance(plan, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _check_architecture(beside: Mapping[str, Any], family: str) -> None:
    """Refuse an adaptation plan of an architecture that its tensors seem to be but are not."""
    name = _text(_architecture(beside).get("arch_class_name"))
    if name and not name.endswith(ARCHITECTURES[family]):
        known = ", ".join(known for names in ARCHITECTURES.values() for known in names)
        raise ValueError(f"its adaptation plan names the architecture {name!r}; known: {known}")


def _text(value: Any) -> str:
    return shown(value) if isinstance(value, str) else ""


def _check_strides(words: Mapping[str, Any]) -> None:
    strides = words.get("strides")
    if strides is None:
        return
    sides = [set(stride) if isinstance(stride, list | tuple) else {stride} for stride in strides]
    if sides[0] != {1} or any(side != {2} for side in sides[1:]):
        raise ValueError(f"it is a ResEnc with strides {strides}; known: 1 in the first stage, then 2")


def _planned_words(beside: Mapping[str, Any]) -> Mapping[str, Any]:
    """Arguments of the network in nnU-Net's plans, which its own checkpoints hold."""
    arguments = beside.get("init_args")
    try:
        configuration = arguments["plans"]["configurations"][arguments["configuration"]]  # type: ignore[index]
        return configuration["architecture"]["arch_kwargs"]
    except (KeyError, TypeError):
        return {}


def _plan_crop(beside: Mapping[str, Any]) -> Crop | None:
    """The crop of the pretraining in the adaptation plan; None without a plan."""
    plan = beside.get(PLAN)
    if not isinstance(plan, Mapping):
        return None
    configurations = (plan.get("pretrain_plan") or {}).get("configurations") or {}
    planned = [configuration.get("patch_size") for configuration in configurations.values()][:1]
    crop = plan.get("pretrain_patch_size") or (planned[0] if planned else None)
    crop = crop or plan.get("recommended_downstream_patchsize")
    if crop is None:
        return None
    if len(crop) != 3:
        raise ValueError(f"its adaptation plan has crops of {len(crop)} axes; only 3D encoders are read")
    x, y, z = (int(side) for side in crop)
    return x, y, z


LAYOUTS = {
    "primus": Layout(("eva.blocks.0.norm1.weight", "eva.pos_embed"), read_primus),
    "resenc": Layout(("stem.convs.0.conv.weight", "stages.0.blocks.0.conv1.conv.weight"), read_resenc),
}
