"""One tiny encoder of each family, for contracts over all of them."""

from typing import Any

from nnssl.encoders import encoder_spec
from nnssl.encoders.base import EncoderSpec

# name of the table, options that make it small, a crop that is no cube (voxels)
FAMILIES: dict[str, tuple[str, dict[str, Any], tuple[int, int, int]]] = {
    "vit_16": ("vit_tiny_16", {"dim": 32, "depth": 4, "heads": 2}, (32, 16, 48)),
    "vit_8": ("vit_tiny_8", {"dim": 32, "depth": 4, "heads": 2}, (16, 8, 24)),
    "swin": ("swin_tiny", {"width": 8, "heads": [1, 2, 2, 4]}, (32, 64, 32)),
    "swin_monai": ("swin_unetr", {"width": 12, "heads": [3, 6, 12, 24]}, (64, 32, 32)),
    "primus": ("primus_s", {"dim": 24, "depth": 4, "heads": 2}, (16, 8, 24)),
    "resenc": ("resenc_l", {"widths": [4, 6, 8, 8], "depths": [1] * 4}, (16, 8, 24)),
}


def words_of(family: str) -> dict[str, Any]:
    """The words of EncoderSegmentor that build its tiny encoder."""
    name, options, _ = FAMILIES[family]
    return {"encoder": name, "encoder_options": options, "native_crop": [32, 32, 32], "precision": "fp32"}


def spec_of(family: str) -> EncoderSpec:
    """Facts about its tiny encoder."""
    name, options, _ = FAMILIES[family]
    return encoder_spec(name, (32, 32, 32), options=options)
