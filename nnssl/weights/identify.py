"""Which encoder a set of tensors belongs to, told from their names and shapes and from what their file says."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nnssl.config import to_dict
from nnssl.encoders import ENCODERS, build_encoder, encoder_spec
from nnssl.encoders.base import Encoder, EncoderSpec, IntensityRange
from nnssl.weights.encoder_file import Weights
from nnssl.weights.layout import Crop, Facts
from nnssl.weights.sizes import FAMILIES, Family, Sizes, check_sizes, cube, family_of


@dataclass(frozen=True)
class Identity:
    """What a weight file holds: all that is needed to build its encoder."""

    encoder: str  # a name of ENCODERS
    native_crop: Crop  # voxels, X Y Z
    options: dict[str, Any] = field(default_factory=dict)  # what differs from the line of ENCODERS
    intensity: IntensityRange | None = None  # None: the file does not say, the encoder's preset holds

    def spec(self, intensity: IntensityRange | None = None) -> EncoderSpec:
        """Facts about the encoder; `intensity` replaces what the file says."""
        intensity = intensity or self.intensity
        return encoder_spec(self.encoder, self.native_crop, intensity=intensity, options=self.options)

    def build(self) -> Encoder:
        """An encoder that the file fits, with fresh weights."""
        return build_encoder(self.encoder, native_crop=self.native_crop, intensity=self.intensity, options=self.options)

    def with_channels(self, input_channels: int) -> "Identity":
        """The same encoder for another number of image channels; loading adapts the first convolution."""
        options = {key: value for key, value in self.options.items() if key != "input_channels"}
        if to_dict(ENCODERS[self.encoder])["input_channels"] != input_channels:
            options["input_channels"] = input_channels
        return replace(self, options=options)


def identify(weights: Weights, prefer: str | None = None) -> Identity:
    """The encoder of a weight file: what the file says, else what its tensors show.

    Args:
        prefer: a name of ENCODERS to take where several fit equally well (smit_96 and smit_128 have the same
            tensors); another encoder than this may still be the answer.

    Raises:
        ValueError: the tensors are of no known encoder, or of another than the file names.
    """
    facts = weights.facts
    family = FAMILIES[family_of(weights.tensors)]
    sizes = family.measure(weights.tensors)
    if facts.encoder is not None:
        name, options, crop = facts.encoder, facts.options, facts.native_crop
    else:
        name, options = nearest_line(family, sizes, facts, prefer)
        crop = facts.native_crop or _table_crop(sizes)
    spec = encoder_spec(name, crop, options=options)
    check_sizes(name, to_dict(ENCODERS[name]) | spec.options, spec.native_crop, sizes)
    return Identity(name, spec.native_crop, spec.options, facts.intensity)


def nearest_line(family: Family, sizes: Sizes, facts: Facts, prefer: str | None = None) -> tuple[str, dict[str, Any]]:
    """The line of ENCODERS that differs least from sizes and forced switches, and the options that differ."""
    values = sizes.values | facts.options
    lines = {name: to_dict(line) for name, line in ENCODERS.items() if isinstance(line, family.line)}
    differing = {name: _differences(line, values) for name, line in lines.items()}
    side = facts.native_crop[0] if facts.native_crop else None

    def distance(name: str) -> tuple[int, bool, bool]:
        return len(differing[name]), name != prefer, side is not None and lines[name]["native_side"] != side

    name = min(differing, key=distance)
    if "heads" not in values and any(key in differing[name] for key in family.heads_of):
        raise ValueError(
            f"the weights hold a {family.title} ({sizes}), which is none of the known encoders: {', '.join(lines)}; "
            "to use it all the same give its heads, which no tensor shows, as an option"
        )
    return name, differing[name]


def _differences(line: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in line or line[key] != value}


def _table_crop(sizes: Any) -> Crop | None:
    """The native crop that a position table shows; native crops of other packages are cubes."""
    if not hasattr(sizes, "cells"):
        return None
    grid = cube(sizes.cells)
    if grid is None:
        raise ValueError(
            f"the weights hold {sizes.cells} positions, which fill no cube; "
            "only files that say so may have another native crop"
        )
    x, y, z = (side * sizes.patch for side in grid)
    return x, y, z
