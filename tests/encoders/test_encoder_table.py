"""The table of encoders: sizes, names, defaults and refusals."""

import pytest
import torch

from nnssl.encoders import ENCODERS, build_encoder, encoder_spec
from nnssl.encoders.base import IntensityRange
from nnssl.encoders.vit import VisionTransformer


def test_vit_large_has_the_published_parameters_and_tensors() -> None:
    with torch.device("meta"):
        encoder = build_encoder("vit_large_16")
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 306_910_208
    assert len(encoder.state_dict()) == 343
    assert encoder.state_dict()["pos_embed"].shape == (1, 344, 1024)


@pytest.mark.parametrize(
    ("name", "side", "count"),
    [("vit_large_16", 96, 306_780_160), ("vit_base_16", 96, 88_389_120), ("vit_base_16", 112, 88_486_656)],
)
def test_other_published_sizes_have_their_parameters(name: str, side: int, count: int) -> None:
    with torch.device("meta"):
        encoder = build_encoder(name, native_crop=(side, side, side))
    assert sum(parameter.numel() for parameter in encoder.parameters()) == count


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_matches_its_facts_on_a_crop_that_is_no_cube(name: str) -> None:
    spec = encoder_spec(name)
    size, patch = name.split("_")[1:]
    widths = {"tiny": 192, "small": 384, "base": 768, "large": 1024, "giant": 1536}
    assert (spec.channels, spec.strides, spec.crop_multiple) == ((widths[size],), (int(patch),), int(patch))
    crop = tuple(cells * spec.crop_multiple for cells in (2, 3, 1))
    with torch.device("meta"):
        encoder = build_encoder(name)
        features = encoder(torch.empty(2, 1, *crop))
    assert encoder.spec == spec
    assert features.maps[0].shape == (2, spec.channels[0], 2, 3, 1)
    assert features.summary.shape == (2, spec.channels[0])


def test_default_native_crops_are_the_stated_ones() -> None:
    sides = {name: encoder_spec(name).native_crop for name in ENCODERS}
    assert sides["vit_large_16"] == sides["vit_giant_16"] == (112, 112, 112)
    assert sides["vit_tiny_16"] == sides["vit_base_16"] == (96, 96, 96)
    assert all(crop == (64, 64, 64) for name, crop in sides.items() if name.endswith("_8"))


def test_heads_have_64_channels_each() -> None:
    with torch.device("meta"):
        encoders = [build_encoder(name) for name in ENCODERS if name.endswith("_8")]
    for encoder in encoders:
        assert isinstance(encoder, VisionTransformer)
        assert encoder.dim // encoder.blocks[0].attn.heads == 64  # type: ignore[union-attr, operator]


def test_an_unknown_encoder_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'vit_huge' is unknown; known encoders: vit_tiny_16, vit_small_16"):
        encoder_spec("vit_huge")


def test_a_native_crop_must_fit_the_patch() -> None:
    with pytest.raises(ValueError, match=r"nearest is \(96, 112, 112\)"):
        build_encoder("vit_small_16", native_crop=(100, 112, 112))


def test_a_list_from_json_serves_as_native_crop() -> None:
    assert encoder_spec("vit_tiny_8", [64, 48, 32]).native_crop == (64, 48, 32)  # type: ignore[arg-type]


def test_the_intensity_asked_for_is_part_of_the_facts() -> None:
    window = IntensityRange("window", -175, 250)
    with torch.device("meta"):
        assert build_encoder("vit_tiny_8", intensity=window).spec.intensity == window
