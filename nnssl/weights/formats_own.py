"""Reader of what nnssl_train saves: the encoder inside a fine-tuned segmentor, as its plans describe it."""

import re
from collections.abc import Mapping
from typing import Any

from nnssl.config import from_dict
from nnssl.encoders import encoder_spec
from nnssl.encoders.base import IntensityRange
from nnssl.layers.low_rank import NAMES
from nnssl.weights.layout import Facts, Reading
from nnssl.weights.sizes import FAMILIES, family_of
from nnssl.weights.unwrap import Checkpoint, Tensors, left_out, renamed

ENCODER = re.compile(r"(?:module\.|_orig_mod\.)*(?:neck|adapter)\.encoder\.(.+)")


def is_finetuned(checkpoint: Checkpoint) -> bool:
    """Whether nnssl_train wrote it: its plans have a section "nnssl"."""
    return "nnssl" in _plans(checkpoint)


def read_finetuned(checkpoint: Checkpoint) -> Reading:
    """The encoder of a fine-tuned segmentor; neck and decoder are left out, low-rank additions added."""
    plans = _plans(checkpoint)
    names = {name: match.group(1) for name in checkpoint.tensors if (match := ENCODER.fullmatch(name))}
    if not names:
        raise ValueError("it is a checkpoint of nnssl_train without an encoder (no tensors neck.encoder.*)")
    others = [name for name in checkpoint.tensors if name not in names]
    tensors, notes = _with_low_rank(renamed(names, checkpoint.tensors))
    kernel = FAMILIES[family_of(tensors)].kernel
    try:
        words = plans["configurations"][checkpoint.beside["init_args"]["configuration"]]["architecture"]
        arguments = words["arch_kwargs"]
        crop = arguments.get("native_crop") or plans["nnssl"]["native_crop"]
        intensity = from_dict(IntensityRange, plans["nnssl"]["intensity"])
        options = dict(arguments.get("encoder_options") or {}) | {"input_channels": tensors[kernel].shape[1]}
        spec = encoder_spec(arguments["encoder"], tuple(crop), intensity=intensity, options=options)
    except (KeyError, TypeError) as error:
        raise ValueError(f"the plans inside this checkpoint of nnssl_train are incomplete ({error})") from error
    origin = (plans["nnssl"].get("run") or {}).get("weights_origin")
    facts = Facts(spec.name, spec.native_crop, spec.options, spec.intensity, origin)
    return Reading(tensors, facts, [*left_out(others), *notes])


def _with_low_rank(tensors: Tensors) -> tuple[Tensors, list[str]]:
    """W + B A for every layer with low-rank additions (their factor is 1), and a note."""
    first, second = (f".{name}" for name in NAMES)
    layers = [name.removesuffix(first) for name in tensors if name.endswith(first)]
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith((first, second))}
    for layer in layers:
        kept[f"{layer}.weight"] = kept[f"{layer}.weight"] + tensors[layer + second] @ tensors[layer + first]
    return kept, [f"low-rank additions of {len(layers)} layers added to their weights"] if layers else []


def _plans(checkpoint: Checkpoint) -> Mapping[str, Any]:
    arguments = checkpoint.beside.get("init_args")
    plans = arguments.get("plans") if isinstance(arguments, Mapping) else None
    return plans if isinstance(plans, Mapping) else {}
