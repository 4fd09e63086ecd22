"""Reader of encoders that `nnssl_weights export --format nnunet` wrote."""

from collections.abc import Mapping
from typing import Any

from nnssl.config import from_dict
from nnssl.encoders.base import IntensityRange
from nnssl.encoders.exported_names import BODY, ENTRY, NETWORK_CLASS, own_name
from nnssl.weights.header import EncoderHeader, header_from_text
from nnssl.weights.layout import Facts, Reading
from nnssl.weights.unwrap import Checkpoint, left_out

PLAN = "nnssl_adaptation_plan"  # MIC-DKFZ's name for what nnU-Net's fine-tuning reads
HEADER = "encoder_header"  # our own: where the weights come from, as JSON


def is_exported(checkpoint: Checkpoint) -> bool:
    """Whether its adaptation plan names our network."""
    return _architecture(checkpoint).get("arch_class_name") == NETWORK_CLASS


def read_exported(checkpoint: Checkpoint) -> Reading:
    """The encoder's tensors under our names, and what the plan says of it."""
    parts = (f"{BODY}.", f"{ENTRY}.")
    found = {own_name(name): tensor for name, tensor in checkpoint.tensors.items() if name.startswith(parts)}
    others = [name for name in checkpoint.tensors if not name.startswith(parts)]
    try:
        words = _architecture(checkpoint)["arch_kwargs"]
        if not isinstance(words["encoder"], str):
            raise TypeError(f"encoder {words['encoder']!r}")
        x, y, z = (int(side) for side in words["native_crop"])
        intensity = from_dict(IntensityRange, words["intensity"])
        facts = Facts(words["encoder"], (x, y, z), dict(words["encoder_options"]), intensity)
    except (KeyError, TypeError) as error:
        raise ValueError(f"the adaptation plan of this exported encoder is incomplete ({error})") from error
    return Reading(found, facts, left_out(others), _header(checkpoint, facts))


def _header(checkpoint: Checkpoint, facts: Facts) -> EncoderHeader | None:
    """The header that the exported file kept: task, steps, licence and hashes of the cases."""
    text = checkpoint.beside.get(HEADER)
    if text is None:
        return None
    header = header_from_text(text)
    if Facts(header.encoder, header.native_crop, header.encoder_options, header.intensity) != facts:
        raise ValueError(
            f"its header describes {header.encoder!r} of crop {header.native_crop} and options "
            f"{header.encoder_options}, its adaptation plan {facts.encoder!r} of crop {facts.native_crop} and options "
            f"{facts.options}; export the encoder again"
        )
    return header


def _architecture(checkpoint: Checkpoint) -> Mapping[str, Any]:
    plan = checkpoint.beside.get(PLAN)
    found = plan.get("architecture_plans") if isinstance(plan, Mapping) else None
    return found if isinstance(found, Mapping) else {}
