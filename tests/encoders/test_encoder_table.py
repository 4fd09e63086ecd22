"""The table of encoders: the contract every encoder keeps, published sizes, defaults and refusals."""

import json
from typing import Any

import pytest
import torch

from nnssl.encoders import ENCODERS, build_encoder, encoder_spec
from nnssl.encoders.base import Encoder, IntensityRange
from nnssl.encoders.primus import PrimusShape
from nnssl.encoders.resenc import ResEncShape
from nnssl.encoders.swin import SwinShape
from nnssl.encoders.vit import VisionTransformer, ViTShape

VITS = [name for name, shape in ENCODERS.items() if isinstance(shape, ViTShape)]
# Options that shrink a line of the table to a few thousand parameters; everything else stays as it is.
SMALL: dict[type, dict[str, Any]] = {
    ViTShape: {"dim": 24, "depth": 2, "heads": 2},
    SwinShape: {"width": 8, "depths": [1, 2, 2, 1], "heads": [1, 2, 2, 4]},
    PrimusShape: {"dim": 24, "depth": 2, "heads": 2},
    ResEncShape: {"widths": [4, 4, 8, 8, 8, 8], "depths": [1, 1, 1, 1, 1, 1]},
}


def _crop(name: str, cells: tuple[int, int, int] = (1, 2, 1)) -> tuple[int, int, int]:
    multiple = encoder_spec(name).crop_multiple
    x, y, z = (count * multiple for count in cells)
    return x, y, z


def _small(name: str, **options: Any) -> Encoder:
    torch.manual_seed(0)
    small = SMALL[type(ENCODERS[name])] | options
    return build_encoder(name, native_crop=_crop(name), options=small).eval()


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_matches_its_facts_on_a_crop_that_is_no_cube(name: str) -> None:
    spec = encoder_spec(name)
    crop = _crop(name, (2, 3, 1))
    with torch.device("meta"):
        encoder = build_encoder(name)
        features = encoder(torch.empty(2, spec.input_channels, *crop))
    assert encoder.spec == spec
    expected = [
        (2, channels, *(side // stride for side in crop))
        for channels, stride in zip(spec.channels, spec.strides, strict=True)
    ]
    assert [tuple(volume.shape) for volume in features.maps] == expected
    assert features.summary.shape == (2, spec.channels[-1])
    x, y, z = spec.token_grid(crop)
    assert {key: tuple(tokens.shape) for key, tokens in features.tokens.items()} == dict.fromkeys(
        ("patch", "distill"), (2, x * y * z, spec.token_channels)
    )
    assert (spec.crop_multiple % spec.token_stride, spec.crop_multiple % spec.strides[-1]) == (0, 0)


@pytest.mark.parametrize("name", [name for name in ENCODERS if encoder_spec(name).maskable])
def test_what_is_hidden_does_not_reach_the_output_and_what_is_not_does(name: str) -> None:
    encoder, crop = _small(name), _crop(name)
    x, y, z = encoder.spec.token_grid(crop)
    mask = torch.zeros(x, y, z, dtype=torch.bool)
    mask[0, y - 1, z - 1] = True
    hidden = mask
    for axis in range(3):
        hidden = hidden.repeat_interleave(encoder.spec.token_stride, axis)
    first = torch.randn(1, 1, *crop)
    second = torch.where(hidden, torch.randn(1, 1, *crop), first)
    with torch.inference_mode():
        masked, changed = (encoder(volume, mask.view(1, -1)) for volume in (first, second))
        seen, seen_changed = (encoder(volume) for volume in (first, second))
    for one, other in zip([*masked.maps, masked.summary], [*changed.maps, changed.summary], strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(seen.summary, seen_changed.summary)
    assert not torch.equal(seen.summary, masked.summary)


@pytest.mark.parametrize("name", [name for name in ENCODERS if not encoder_spec(name).maskable])
def test_an_encoder_that_cannot_hide_tokens_says_so(name: str) -> None:
    encoder, crop = _small(name), _crop(name)
    x, y, z = encoder.spec.token_grid(crop)
    with pytest.raises(ValueError, match="cannot be hidden"):
        encoder(torch.zeros(1, 1, *crop), torch.zeros(1, x * y * z, dtype=torch.bool))


@pytest.mark.parametrize("name", ENCODERS)
def test_the_maps_follow_the_axes_of_the_volume(name: str) -> None:
    """A change at one end of the longest axis moves the finest map most there."""
    encoder, crop = _small(name), _crop(name, (1, 1, 3))
    volume = torch.randn(1, 1, *crop)
    changed = volume.clone()
    changed[..., -encoder.spec.strides[0] :] += 1.0
    with torch.inference_mode():
        moved = (encoder(changed).maps[0] - encoder(volume).maps[0]).abs().sum((0, 1))
    per_cell = moved.sum((0, 1))
    assert per_cell.argmax() >= len(per_cell) * 2 // 3


@pytest.mark.parametrize("name", ENCODERS)
def test_options_survive_json_and_lead_to_the_same_network(name: str) -> None:
    first = _small(name, input_channels=2)
    options = json.loads(json.dumps(first.spec.options))
    assert options["input_channels"] == first.spec.input_channels == 2
    again = build_encoder(name, native_crop=first.spec.native_crop, options=options).eval()
    assert again.spec == first.spec
    again.load_state_dict(first.state_dict())
    volume = torch.randn(1, 2, *_crop(name))
    with torch.inference_mode():
        assert torch.equal(first(volume).summary, again(volume).summary)
    with pytest.raises(ValueError, match=r"reads volumes \(B, 2, X, Y, Z\)"):
        first(volume[:, :1])


@pytest.mark.parametrize("name", ENCODERS)
def test_an_option_that_changes_nothing_is_not_recorded(name: str) -> None:
    assert encoder_spec(name, options={"input_channels": 1}).options == {}
    with pytest.raises(ValueError, match="has no setting 'colour'"):
        encoder_spec(name, options={"colour": 1})


@pytest.mark.parametrize("name", ENCODERS)
def test_blocks_are_counted_and_those_of_transformers_have_the_projections_that_adapters_wrap(name: str) -> None:
    encoder = _small(name)
    blocks = encoder.blocks_in_order
    assert len(blocks) == encoder.spec.depth
    if encoder.spec.family in ("vit", "swin"):
        assert all(
            isinstance(getattr(block.attn, part), torch.nn.Linear) for block in blocks for part in ("qkv", "proj")
        )


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


@pytest.mark.parametrize("name", VITS)
def test_the_name_of_a_vit_says_its_size(name: str) -> None:
    spec = encoder_spec(name)
    size, patch = name.split("_")[1:]
    widths = {"tiny": 192, "small": 384, "base": 768, "large": 1024, "giant": 1536}
    assert (spec.channels, spec.strides, spec.crop_multiple) == ((widths[size],), (int(patch),), int(patch))


def test_default_native_crops_are_the_stated_ones() -> None:
    sides = {name: encoder_spec(name).native_crop for name in VITS}
    assert sides["vit_large_16"] == sides["vit_giant_16"] == (112, 112, 112)
    assert sides["vit_tiny_16"] == sides["vit_base_16"] == (96, 96, 96)
    assert all(crop == (64, 64, 64) for name, crop in sides.items() if name.endswith("_8"))


def test_heads_have_64_channels_each() -> None:
    with torch.device("meta"):
        encoders = [build_encoder(name) for name in VITS if name.endswith("_8")]
    for encoder in encoders:
        assert isinstance(encoder, VisionTransformer)
        assert encoder.dim // encoder.blocks[0].attn.heads == 64  # type: ignore[union-attr, operator]


def test_an_unknown_encoder_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'vit_huge' is unknown; known encoders: vit_tiny_16, vit_small_16"):
        encoder_spec("vit_huge")


def test_a_native_crop_must_fit_the_patch() -> None:
    with pytest.raises(ValueError, match=r"nearest is \(96, 112, 112\)"):
        build_encoder("vit_small_16", native_crop=(100, 112, 112))
    with pytest.raises(ValueError, match=r"multiple of 32 voxels; the nearest is \(96, 96, 128\)"):
        build_encoder("smit_96", native_crop=(96, 96, 112))


def test_a_list_from_json_serves_as_native_crop() -> None:
    assert encoder_spec("vit_tiny_8", [64, 48, 32]).native_crop == (64, 48, 32)  # type: ignore[arg-type]


def test_the_intensity_asked_for_is_part_of_the_facts() -> None:
    window = IntensityRange("window", -175, 250)
    with torch.device("meta"):
        assert build_encoder("vit_tiny_8", intensity=window).spec.intensity == window
        assert build_encoder("swin_tiny", intensity=window).spec.intensity == window
