"""The table of published weight layouts, and how a file finds its line: by the names of its tensors."""

from collections.abc import Sequence

from nnssl.weights import formats_swin, formats_upstream, formats_vit
from nnssl.weights.formats_nnunet import is_exported, read_exported
from nnssl.weights.formats_own import is_finetuned, read_finetuned
from nnssl.weights.layout import Layout, Reading
from nnssl.weights.unwrap import SHOWN, Checkpoint, Tensors, left_out, prefixes, shown

COPIES = "decoder."  # nnU-Net's decoder holds its encoder once more

LAYOUTS: dict[str, Layout] = formats_vit.LAYOUTS | formats_swin.LAYOUTS | formats_upstream.LAYOUTS


def read_layout(checkpoint: Checkpoint) -> tuple[Reading, str]:
    """Bring the tensors of a recognised layout to our names.

    Returns:
        What the reader made of the file, and the name of the layout.

    Raises:
        ValueError: no known layout, or one that our encoders cannot hold; the message names what differs.
    """
    if is_finetuned(checkpoint):
        return read_finetuned(checkpoint), "nnssl_train"
    if is_exported(checkpoint):
        return read_exported(checkpoint), "nnunet"
    for name, layout in LAYOUTS.items():
        if starts := prefixes(checkpoint.tensors, layout.anchors):
            inside, notes = _inside(checkpoint.tensors, _one(starts))
            reading = layout.read(inside, checkpoint.beside)
            return Reading(reading.tensors, reading.facts, notes + reading.notes), name
    names = ", ".join(map(shown, list(checkpoint.tensors)[:SHOWN]))
    raise ValueError(f"its tensors ({names}, ...) are of no known layout; known: nnssl, {', '.join(LAYOUTS)}")


def _inside(tensors: Tensors, start: str) -> tuple[Tensors, list[str]]:
    """Tensors under a prefix, without it, and notes on the prefix and on those beside it."""
    inside = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
    others = [name for name in tensors if not name.startswith(start)]
    return inside, [*([f"prefix {shown(start)!r} removed"] if start else []), *left_out(others)]


def _one(starts: Sequence[str]) -> str:
    """The place of the encoder; copies in other networks do not count."""
    originals = [start for start in starts if not start.startswith(COPIES)] or list(starts)
    if len(originals) > 1:
        places = ", ".join(repr(shown(start)) for start in originals[:SHOWN])
        raise ValueError(f"it holds {len(originals)} encoders (prefixes {places}); save one of them alone")
    return originals[0]
