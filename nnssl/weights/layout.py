"""What a reader of one published layout is, and what it hands on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nnssl.encoders.base import IntensityRange
from nnssl.weights.header import EncoderHeader
from nnssl.weights.unwrap import Tensors

Crop = tuple[int, int, int]


@dataclass(frozen=True)
class Facts:
    """What a file says about its encoder beyond the shapes of its tensors.

    Attributes:
        options: with `encoder` those that differ from its line of ENCODERS; without, the switches that the layout
            forces because no shape shows them (orders of windows and merges, taps, axes).
        origin: format of the published file that the weights were fine-tuned from, if from one.
    """

    encoder: str | None = None  # a name of ENCODERS
    native_crop: Crop | None = None  # voxels, X Y Z
    options: dict[str, Any] = field(default_factory=dict)
    intensity: IntensityRange | None = None
    origin: str | None = None


@dataclass(frozen=True)
class Reading:
    """The tensors of a file under our names, what it says, what was left out, and our header where the file kept it."""

    tensors: Tensors
    facts: Facts = field(default_factory=Facts)
    notes: list[str] = field(default_factory=list)
    header: EncoderHeader | None = None


@dataclass(frozen=True)
class Layout:
    """One published layout.

    Attributes:
        anchors: names that stand together, under any prefix, in this layout and in no other before it in the table.
        read: (tensors without the prefix, plain values beside them) to our names.
    """

    anchors: tuple[str, ...]
    read: Callable[[Tensors, Mapping[str, Any]], Reading]
