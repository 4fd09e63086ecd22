"""The Swin transformer against golden numbers: every merge order, both window reverses, both taps, hidden tokens."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from nnssl.encoders.base import Features
from nnssl.encoders.swin import MERGE_ORDERS, SwinShape, SwinTransformer
from tests.rules import golden_error, normal, rule_tensor

GOLDEN = SwinShape(24, (2, 2, 4, 2), (2, 2, 4, 8), 4, 96)
MONAI_W4 = replace(GOLDEN, taps="pre_block", clamp_window=True)
MONAI_W7 = replace(MONAI_W4, window=7, qkv_bias=True, patch_norm=False)
REVERSES = ("legacy", "correct")


def _golden(shape: SwinShape) -> SwinTransformer:
    encoder = shape.build(shape.spec("swin_golden", None, None), 0.0).eval()
    values = {name: rule_tensor(name, tuple(tensor.shape)) for name, tensor in encoder.state_dict().items()}
    encoder.load_state_dict({name: torch.from_numpy(value) for name, value in values.items()})
    return encoder


def _input(batch: int, side: int) -> torch.Tensor:
    return torch.from_numpy(normal("input", (batch, 1, side, side, side)))


def _named(features: Features) -> dict[str, torch.Tensor]:
    maps = {f"map{stage}": features.maps[stage] for stage in range(4)}
    bottleneck = features.maps[4].flatten(2).transpose(1, 2)
    return maps | {"bottleneck": bottleneck, "distill_tokens": features.tokens["distill"]}


def test_parameters_have_the_published_names_and_shapes(golden: Callable[[str], Any]) -> None:
    lines = [line.split("\t") for line in golden("keys_smit_swin.txt").splitlines()]
    published = {name: shape for name, shape, _ in lines if not name.endswith("relative_position_index")}
    assert {name: str(tuple(tensor.shape)) for name, tensor in _golden(GOLDEN).state_dict().items()} == published


@torch.inference_mode()
@pytest.mark.parametrize("order", MERGE_ORDERS)
@pytest.mark.parametrize("rule", REVERSES)
@pytest.mark.parametrize("side", [32, 64, pytest.param(96, marks=pytest.mark.slow)])
def test_every_convention_agrees_with_golden_numbers(
    golden: Callable[[str], Any], side: int, rule: str, order: str
) -> None:
    stored = golden("g06_smit_swin.npz")
    plain = f"{side}x{side}x{side}"
    prefix = plain if (rule, order) == ("legacy", "smit") else f"{plain}.{rule}_{order}"
    encoder = _golden(replace(GOLDEN, window_reverse=rule, merge_order=order))
    volume = _input(2 if side == 32 else 1, side)
    found = _named(encoder(volume)) | {"patch_embed": encoder.patch_embed(volume).movedim(-1, 1)}
    names = {name.removeprefix(f"{prefix}.").removesuffix("__sub") for name in stored.files}
    checked = [name for name in found if name in names]
    assert len(checked) == (7 if prefix == plain else 6 if order == "smit" else 2)
    for name in checked:
        assert golden_error(stored, f"{prefix}.{name}", found[name].numpy()) < 3e-5, name


@torch.inference_mode()
@pytest.mark.parametrize("side", [32, 64, pytest.param(96, marks=pytest.mark.slow)])
def test_masked_outputs_agree_with_golden_numbers(golden: Callable[[str], Any], side: int) -> None:
    stored = golden("g06_smit_swin.npz")
    prefix = f"{side}x{side}x{side}.masked"
    mask = torch.from_numpy(stored[f"{prefix}.token_mask"]).bool().flatten(1)
    features = _golden(replace(GOLDEN, window_reverse="legacy"))(_input(len(mask), side), mask)
    for name, value in _named(features).items():
        assert golden_error(stored, f"{prefix}.{name}", value.numpy()) < 3e-5, name


@torch.inference_mode()
@pytest.mark.parametrize("window", [4, 7])
@pytest.mark.parametrize("order", MERGE_ORDERS)
@pytest.mark.parametrize("side", [64, pytest.param(96, marks=pytest.mark.slow)])
def test_taps_before_the_blocks_agree_with_golden_numbers(
    golden: Callable[[str], Any], side: int, order: str, window: int
) -> None:
    stored = golden("g06_monai_swin.npz")
    prefix = f"w{window}.{side}x{side}x{side}.{order}"
    if f"{prefix}.tap4_plainnorm" not in [name.removesuffix("__sub") for name in stored.files]:
        pytest.skip("no golden numbers of this order")
    encoder = _golden(replace({4: MONAI_W4, 7: MONAI_W7}[window], merge_order=order))
    features = encoder(_input(1, side))
    for stage, value in enumerate(features.maps):
        assert golden_error(stored, f"{prefix}.tap{stage}_plainnorm", value.numpy()) < 5e-5, stage
    if f"{prefix}.tap3_raw__sub" in stored.files:
        distilled = features.tokens["distill"].transpose(1, 2).unflatten(2, (side // 16,) * 3)
        assert golden_error(stored, f"{prefix}.tap3_raw", distilled.numpy()) < 5e-5


def test_legacy_and_correct_windows_differ_where_a_window_is_a_whole_stage() -> None:
    first, second = (_golden(replace(GOLDEN, window_reverse=rule)) for rule in REVERSES)
    with torch.inference_mode():
        one, other = (encoder(_input(1, 32)).summary for encoder in (first, second))
    assert (one - other).norm() / other.norm() > 0.1
