"""Readers of published weight layouts: from the tensors of a file to the parameter names of our encoders."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

OUTER_KEYS = ("teacher", "student", "model", "state_dict")  # in order of preference
PREFIXES = ("module.", "_orig_mod.", "backbone.")
HEADS = ("dino_head.", "ibot_head.", "head.")
CHUNKED = re.compile(r"blocks\.\d+\.(\d+\.\D.*)")
SHOWN = 4  # names in a message

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """One published layout: how to know it, and how to read it into (tensors, notes)."""

    recognise: Callable[[Tensors], bool]
    read: Callable[[Tensors], tuple[Tensors, list[str]]]


def find_tensors(content: Any) -> tuple[Tensors, list[str]]:
    """The dictionary of tensors inside a checkpoint, which may be wrapped in `teacher`, `model`, ...

    Returns:
        Tensors by name, and notes on what was chosen and left out.
    """
    notes: list[str] = []
    while outer := _outer_keys(content):
        notes.append(f"took {outer[0]!r}" + (f", left out {', '.join(map(repr, outer[1:]))}" if outer[1:] else ""))
        content = content[outer[0]]
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__}; expected named tensors")
    tensors = {str(key): value for key, value in content.items() if _is_plain(value)}
    if not tensors:
        names = ", ".join(str(key)[:40] for key in list(content)[:SHOWN])
        raise ValueError(
            f"no tensors among its entries ({names or 'it has none'}); expected named tensors or one of: "
            f"{', '.join(OUTER_KEYS)}"
        )
    if len(tensors) < len(content):
        notes.append(f"left out {len(content) - len(tensors)} entries that are no plain tensors")
    return tensors, notes


def read_layout(tensors: Tensors) -> tuple[Tensors, str, list[str]]:
    """Bring the tensors of a recognised layout to our names.

    Returns:
        Tensors, the name of the layout, and notes on what was left out.
    """
    stripped = _renamed({name: _without_prefixes(name) for name in tensors}, tensors)
    for name, layout in LAYOUTS.items():
        if layout.recognise(stripped):
            found, notes = layout.read(stripped)
            return found, name, notes
    names = ", ".join(list(tensors)[:SHOWN])
    raise ValueError(f"its tensors ({names}, ...) are of no known layout; known: {', '.join(LAYOUTS)}")


def _outer_keys(content: Any) -> list[str]:
    if not isinstance(content, Mapping):
        return []
    return [key for key in OUTER_KEYS if isinstance(content.get(key), Mapping)]


def _is_plain(value: Any) -> bool:
    """A tensor with numbers in it: neither sparse, nor quantised, nor on the meta device."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_quantized or value.is_meta)


def _is_vit(tensors: Tensors) -> bool:
    return {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= tensors.keys()


def _read_vit(tensors: Tensors) -> tuple[Tensors, list[str]]:
    """3DINO: blocks are flat (`blocks.<i>`) or in chunks (`blocks.<chunk>.<i>`, i counting over all chunks)."""
    heads = [name for name in tensors if name.startswith(HEADS)]
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(HEADS)}
    found = _renamed({name: CHUNKED.sub(r"blocks.\1", name) for name in kept}, kept)
    kinds = sorted({name.partition(".")[0] for name in heads})
    return found, [f"left out {len(heads)} tensors of {', '.join(kinds)}"] if heads else []


def _without_prefixes(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name


def _renamed(names: Mapping[str, str], tensors: Tensors) -> Tensors:
    """Tensors under new names; two that meet under one name are an error."""
    result: Tensors = {}
    for old, new in names.items():
        if new in result:
            raise ValueError(f"two of its tensors are called {new!r} once prefixes and chunks are removed")
        result[new] = tensors[old]
    return result


LAYOUTS: dict[str, Layout] = {
    "3dino": Layout(_is_vit, _read_vit),
}
