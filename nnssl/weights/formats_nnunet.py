"""Reader of encoders that `nnssl_weights export --format nnunet` wrote."""

from collections.abc import Mapping
from typing import Any

from nnssl.config import from_dict
from nnssl.encoders.base import IntensityRange
from nnssl.encoders.exported_names import BODY, ENTRY, NETWORK_CLASS, own_name
from nnssl.weights.header import header_from_text
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
        x, y, z = (int(side) for side in words["native_crop"])
        intensity = from_dict(IntensityRange, words["intensity"])
        facts = Facts(str(words["encoder"]), (x, y, z), dict(words["encoder_options"]), intensity)
    except (KeyError, TypeError) as error:
        raise ValueError(f"the adaptation plan of this exported encoder is incomplete ({error})") from error
    return Reading(found, facts, [*left_out(others), *_origin(checkpoint)])


def _origin(checkpoint: Checkpoint) -> list[str]:
    """A note on the pretraining, from the header that the exported file kept."""
    text = checkpoint.beside.get(HEADER)
    if not isinstance(text, str):
        return []
    header = header_from_text(text)
    return [f"exported by nnssl {header.package_version}: task {header.task or 'unknown'}, {header.steps} steps"]


def _architecture(checkpoint: Checkpoint) -> Mapping[str, Any]:
    plan = checkpoint.beside.get(PLAN)
    found = plan.get("architecture_plans") if isinstance(plan, Mapping) else None
    return found if isinstance(found, Mapping) else {}
