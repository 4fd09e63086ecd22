"""The encoder that a file holds is told from its tensors, its header, and what the user prefers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nnssl.encoders import build_encoder
from nnssl.encoders.vit import VisionTransformer
from nnssl.weights.encoder_file import Weights, read_weights, save_encoder
from nnssl.weights.identify import Identity, identify
from nnssl.weights.layout import Facts
from tests.weights.toy_files import rule_state, swin_shapes, toy_header, toy_vit


def _found(tensors: dict[str, Tensor], prefer: str | None = None, **facts: Any) -> Identity:
    return identify(Weights(tensors, None, "test", facts=Facts(**facts)), prefer)


def _shapes_of(name: str, native_crop: tuple[int, int, int] | None = None, **options: Any) -> dict[str, Tensor]:
    with torch.device("meta"):
        return build_encoder(name, native_crop=native_crop, options=options).state_dict()


@pytest.mark.parametrize("name", ["vit_tiny_8", "vit_small_16", "vit_large_16", "vit_giant_8"])
def test_a_vit_is_told_from_its_tensors(name: str) -> None:
    assert _found(_shapes_of(name, (48, 48, 48))) == Identity(name, (48, 48, 48))


SMIT = {  # width, blocks and heads of the stages, as published
    "smit_96": (48, (2, 2, 8, 2), (4, 4, 8, 16)),
    "smit_s": (96, (2, 2, 18, 2), (4, 4, 8, 16)),
    "smit_p": (128, (2, 2, 40, 4), (8, 16, 32, 64)),
    "smit_repo": (48, (2, 2, 4, 2), (4, 4, 4, 4)),
    "swin_tiny": (24, (2, 2, 2, 2), (2, 2, 4, 8)),
}


def _swin(width: int, depths: Sequence[int], heads: Sequence[int], *, qkv_bias: bool = False) -> dict[str, Tensor]:
    shapes = swin_shapes(width, depths, heads, 4, qkv_bias=qkv_bias)
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize("name", SMIT)
def test_a_swin_is_told_from_its_tensors(name: str) -> None:
    found = _found(_swin(*SMIT[name]))
    assert found.encoder == name and not found.options


@pytest.mark.parametrize("name", ["primus_s", "primus_b", "primus_m", "primus_l", "resenc_l"])
def test_an_encoder_of_mic_dkfz_is_told_from_its_tensors(name: str) -> None:
    assert _found(_shapes_of(name)) == Identity(name, (160, 160, 160))


def test_what_differs_from_the_nearest_line_becomes_options() -> None:
    """HeartSubSeg: depths 2, 2, 12, 2 and qkv bias are nearest to SMIT, with more blocks."""
    tensors = _swin(48, (2, 2, 12, 2), (4, 4, 8, 16), qkv_bias=True)
    found = _found(tensors, native_crop=(128, 128, 128), options={"window_reverse": "legacy"})
    expected = {"depths": [2, 2, 12, 2], "qkv_bias": True, "window_reverse": "legacy"}
    assert found == Identity("smit_128", (128, 128, 128), expected)


def test_the_preferred_name_decides_between_equals_only() -> None:
    tensors = _swin(*SMIT["smit_96"])
    assert _found(tensors).encoder == "smit_96"
    assert _found(tensors, "smit_128").encoder == "smit_128"
    assert _found(tensors, "smit_s").encoder == "smit_96"


def test_channels_of_the_file_become_an_option_and_can_be_replaced() -> None:
    found = _found(_shapes_of("vit_tiny_8", input_channels=4))
    assert found.options == {"input_channels": 4}
    assert found.with_channels(1).options == {}
    assert found.with_channels(2).spec().input_channels == 2


def test_the_header_says_which_encoder_a_file_holds(tmp_path: Path) -> None:
    encoder = build_encoder("vit_tiny_16", native_crop=(32, 64, 48))
    assert isinstance(encoder, VisionTransformer)
    save_encoder(tmp_path / "a.safetensors", encoder, toy_header(encoder))
    found = identify(read_weights(tmp_path / "a.safetensors"))
    assert (found.encoder, found.native_crop) == ("vit_tiny_16", (32, 64, 48))


def test_a_size_that_is_in_no_table_is_refused_unless_its_heads_are_given() -> None:
    tensors = rule_state(toy_vit(), chunk=0)
    with pytest.raises(ValueError, match=r"ViT \(dim 16, depth 4, patch 8\), which is none of .* give its heads"):
        _found(tensors)
    found = _found(tensors, options={"heads": 2})
    assert found.build().state_dict().keys() == tensors.keys() and found.native_crop == (24, 24, 24)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"a": torch.ones(1)}, "hold none of the known encoders"),
        ({"patch_embed.proj.weight": torch.ones(8, 3, 14, 14), "pos_embed": torch.ones(1, 5, 8)}, "3D encoder"),
        ({"patch_embed.proj.weight": torch.ones(8, 1, 4, 4, 2), "pos_embed": torch.ones(1, 5, 8)}, "3D encoder"),
        ({"patch_embed.proj.weight": torch.ones(8, 1, 4, 4, 4), "pos_embed": torch.ones(8)}, "pos_embed has shape"),
    ],
)
def test_tensors_of_other_networks_are_refused(tensors: dict[str, Tensor], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        _found(tensors)


@pytest.mark.parametrize(("rows", "reason"), [(342, "342 rows"), (64, "64 rows")])
def test_a_bias_table_of_no_window_is_refused(rows: int, reason: str) -> None:
    tensors = _swin(*SMIT["swin_tiny"])
    tensors["layers.0.blocks.0.attn.relative_position_bias_table"] = torch.ones(rows, 2)
    with pytest.raises(ValueError, match=reason):
        _found(tensors)
