"""The table of encoders: facts about one by name, and the network itself."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from nnssl.config import from_dict, to_dict
from nnssl.encoders.base import Encoder, EncoderSpec, IntensityRange
from nnssl.encoders.vit import ViTShape


class EncoderShape(Protocol):
    """A line of the table: the sizes of one encoder."""

    def spec(
        self, name: str, native_crop: tuple[int, int, int] | None, intensity: IntensityRange | None
    ) -> EncoderSpec:
        """Facts, without building a network; None is the encoder's own default."""

    def build(self, spec: EncoderSpec, drop_path: float) -> Encoder:
        """A freshly initialised network."""


ENCODERS: dict[str, EncoderShape] = {
    # name: width, blocks, heads, patch and default native side (voxels)
    "vit_tiny_16": ViTShape(192, 12, 3, 16, 96),
    "vit_small_16": ViTShape(384, 12, 6, 16, 96),
    "vit_base_16": ViTShape(768, 12, 12, 16, 96),
    "vit_large_16": ViTShape(1024, 24, 16, 16, 112),  # the published 3DINO weights
    "vit_giant_16": ViTShape(1536, 40, 24, 16, 112),
    "vit_tiny_8": ViTShape(192, 12, 3, 8, 64),
    "vit_small_8": ViTShape(384, 12, 6, 8, 64),
    "vit_base_8": ViTShape(768, 12, 12, 8, 64),
    "vit_large_8": ViTShape(1024, 24, 16, 8, 64),
    "vit_giant_8": ViTShape(1536, 40, 24, 8, 64),
}


def encoder_spec(
    name: str,
    native_crop: tuple[int, int, int] | None = None,
    *,
    intensity: IntensityRange | None = None,
    options: Mapping[str, Any] | None = None,
) -> EncoderSpec:
    """Facts about an encoder of the table.

    Args:
        name: a key of `ENCODERS`; an unknown one is an error that lists them.
        native_crop: crop of the pretraining in voxels (X, Y, Z), not necessarily a cube; default: the table's.
        intensity: what the encoder sees; default: the encoder's own (ViT: 3DINO's percentiles, scaled to [-1, 1]).
        options: fields of the table's line that differ, such as {"depths": [2, 2, 12, 2], "input_channels": 2}.
    """
    shape, changed = _shape(name, options or {})
    crop = tuple(native_crop) if native_crop is not None else None
    return replace(shape.spec(name, crop, intensity), options=changed)  # type: ignore[arg-type]


def build_encoder(
    name: str,
    *,
    native_crop: tuple[int, int, int] | None = None,
    intensity: IntensityRange | None = None,
    drop_path: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> Encoder:
    """A freshly initialised encoder of the table; see `encoder_spec`. `drop_path` in [0, 1) is for training."""
    shape, _ = _shape(name, options or {})
    return shape.build(encoder_spec(name, native_crop, intensity=intensity, options=options), drop_path)


def _shape(name: str, options: Mapping[str, Any]) -> tuple[EncoderShape, dict[str, Any]]:
    """The line of the table with options applied, and those options that change it, as JSON values."""
    if name not in ENCODERS:
        raise ValueError(f"encoder {name!r} is unknown; known encoders: {', '.join(ENCODERS)}")
    line: Any = ENCODERS[name]
    if not options:
        return line, {}
    before = to_dict(line)
    shape = from_dict(type(line), before | dict(options))
    return shape, {key: value for key, value in to_dict(shape).items() if value != before[key]}
