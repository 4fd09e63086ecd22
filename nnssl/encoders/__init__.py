"""The table of encoders: facts about one by name, and the network itself."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from nnssl.config import from_dict, to_dict
from nnssl.encoders.base import Encoder, EncoderSpec, IntensityRange
from nnssl.encoders.primus import PrimusShape
from nnssl.encoders.resenc import ResEncShape
from nnssl.encoders.swin import SwinShape
from nnssl.encoders.vit import ViTShape


class EncoderShape(Protocol):
    """A line of the table: the sizes of one encoder."""

    def spec(
        self, name: str, native_crop: tuple[int, int, int] | None, intensity: IntensityRange | None
    ) -> EncoderSpec:
        """Facts, without building a network; None is the encoder's own default."""

    def build(self, spec: EncoderSpec, drop_path: float) -> Encoder:
        """A freshly initialised network."""


SMIT_REPOSITORY: dict[str, Any] = {"intensity_window": (-175.0, 250.0), "native_spacing": (2.0, 2.0, 2.0)}
MONAI: dict[str, Any] = {
    "qkv_bias": True,
    "patch_norm": False,
    "merge_order": "monai15",
    "taps": "pre_block",
    "clamp_window": True,
    "intensity_window": (-1000.0, 1000.0),
    "native_spacing": None,  # its pretraining has options for a spacing (1.5, 1.5, 2 mm) and does not use them
}

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
    # name: width, blocks and heads of the stages, window and default native side
    "smit_96": SwinShape(48, (2, 2, 8, 2), (4, 4, 8, 16), 4, 96),
    "smit_128": SwinShape(48, (2, 2, 8, 2), (4, 4, 8, 16), 4, 128),
    "smit_s": SwinShape(96, (2, 2, 18, 2), (4, 4, 8, 16), 4, 96),
    # heads of smit_p: not published; the paper's 586.1 M fit these (586.149 M), not 4, 4, 8, 16 (585.743 M)
    "smit_p": SwinShape(128, (2, 2, 40, 4), (8, 16, 32, 64), 4, 128),
    "smit_repo": SwinShape(48, (2, 2, 4, 2), (4, 4, 4, 4), 4, 96, **SMIT_REPOSITORY),
    "swin_unetr": SwinShape(48, (2, 2, 2, 2), (3, 6, 12, 24), 7, 96, **MONAI),
    "swin_tiny": SwinShape(24, (2, 2, 2, 2), (2, 2, 4, 8), 4, 64),  # for tests and laptops
    # name: width, blocks, heads; patch 8, default native side 160
    "primus_s": PrimusShape(396, 12, 6),
    "primus_b": PrimusShape(792, 12, 12),
    "primus_m": PrimusShape(864, 16, 12),
    "primus_l": PrimusShape(1056, 24, 16),
    "resenc_l": ResEncShape(),
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
