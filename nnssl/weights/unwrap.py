"""From what a file holds to its named tensors: outer dictionaries opened, prefixes found by the names they lead to."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

OUTER_KEYS = ("teacher", "student", "network_weights", "model", "state_dict")  # in order of preference
SWIN_MARK = "relative_position_bias_table"
SHOWN, LENGTH = 4, 80  # names in a message, characters of one
WRAPS = 8  # dictionaries around the tensors; a file can say that a dictionary lies in itself

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file under its own names, and the plain values that lay around them."""

    tensors: Tensors
    beside: dict[str, Any] = field(default_factory=dict)  # such as trainer_name and init_args
    notes: list[str] = field(default_factory=list)  # what was chosen and left out


def unwrap(content: Any) -> Checkpoint:
    """The dictionary of tensors inside a checkpoint, which may be wrapped in `teacher`, `model`, ... several times."""
    notes: list[str] = []
    beside: dict[str, Any] = {}
    while outer := _outer_keys(content):
        if len(notes) == WRAPS:
            raise ValueError(f"its tensors lie in more than {WRAPS} dictionaries ({', '.join(notes[:SHOWN])}, ...)")
        chosen = _preferred(content, outer)
        left = [repr(key) for key in outer if key != chosen]
        notes.append(f"took {chosen!r}" + (f", left out {', '.join(left)}" if left else ""))
        beside |= {str(key): value for key, value in content.items() if key not in outer}
        content = content[chosen]
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__}; expected named tensors")
    if {"task", "steps_done"} <= content.keys():
        raise ValueError("it is the state of a pretraining of nnssl; give the encoder.safetensors beside it")
    tensors = {str(key): value for key, value in content.items() if _is_plain(value)}
    if not tensors:
        names = ", ".join(shown(str(key)) for key in list(content)[:SHOWN])
        raise ValueError(
            f"no tensors among its entries ({names or 'it has none'}); expected named tensors or one of: "
            f"{', '.join(OUTER_KEYS)}"
        )
    others = {str(key): value for key, value in content.items() if str(key) not in tensors}
    if others:
        notes.append(f"left out {len(others)} entries that are no plain tensors")
    return Checkpoint(tensors, beside | others, notes)


def prefixes(names: Iterable[str], anchors: Sequence[str]) -> list[str]:
    """What stands before all `anchors` at once, such as "module.backbone."; there may be several such places."""
    known = set(names)
    first = anchors[0]
    starts = [name.removesuffix(first) for name in known if name == first or name.endswith("." + first)]
    return sorted(start for start in starts if all(start + anchor in known for anchor in anchors))


def renamed(names: Mapping[str, str], tensors: Tensors) -> Tensors:
    """Tensors under new names; two that meet under one name are an error."""
    result: Tensors = {}
    for old, new in names.items():
        if new in result:
            raise ValueError(f"two of its tensors are called {new!r} once prefixes and chunks are removed")
        result[new] = tensors[old]
    return result


def left_out(names: Sequence[str]) -> list[str]:
    """A note on tensors beside the encoder, by the part of the network that they belong to; empty for none."""
    parts = sorted({name.partition(".")[0] for name in names})
    more = f", ... {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""
    return [f"left out {len(names)} tensors of {', '.join(map(shown, parts[:SHOWN]))}{more}"] if names else []


def shown(text: str, length: int = LENGTH) -> str:
    """What a file says, fit for a line of a terminal: no control characters, not longer than `length`."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text[: length + 1])
    return plain if len(plain) <= length else f"{plain[: length - 3]}..."


def _outer_keys(content: Any) -> list[str]:
    if not isinstance(content, Mapping):
        return []
    return [key for key in OUTER_KEYS if isinstance(content.get(key), Mapping)]


def _preferred(content: Mapping[str, Any], outer: Sequence[str]) -> str:
    """3DINO's own loader reads the teacher, SMIT's (HeartSubSeg) the student."""
    is_swin = "student" in outer and any(SWIN_MARK in str(name) for name in content["student"])
    return "student" if is_swin else outer[0]


def _is_plain(value: Any) -> bool:
    """A tensor with all its numbers in the file: not sparse, quantised, on the meta device or one number repeated."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized or value.is_meta:
        return False
    return value.untyped_storage().nbytes() >= value.numel() * value.element_size()
