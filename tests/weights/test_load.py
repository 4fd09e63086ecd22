"""Weights of every layout arrive whole in the encoder, and what does not fit is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nnssl.encoders import build_encoder
from nnssl.encoders.base import EncoderSpec
from nnssl.encoders.vit import VisionTransformer
from nnssl.layers.position import resample_positions
from nnssl.weights.encoder_file import save_encoder
from nnssl.weights.load import load_encoder
from tests.rules import golden_error, normal
from tests.weights.toy_files import heads, rule_state, teacher_file, toy_header, toy_vit


def _prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _state_equals(encoder: VisionTransformer, expected: dict[str, Tensor]) -> bool:
    state = encoder.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)


@pytest.mark.parametrize("chunk", [2, 0])
def test_a_published_file_gives_the_golden_output(golden: Callable[[str], Any], tmp_path: Path, chunk: int) -> None:
    stored = golden("g01_vit3d.npz")
    encoder = VisionTransformer(EncoderSpec("vit_golden_16", (96,), (16,), 16, (96, 96, 96)), 8, heads=4).eval()
    report = load_encoder(encoder, teacher_file(tmp_path / "weights.pth", encoder, chunk=chunk))
    assert (report.loaded, report.total) == (8 * 14 + 7, 8 * 14 + 7)
    with torch.inference_mode():
        summary = encoder(torch.from_numpy(normal("input", (2, 1, 96, 96, 96)))).summary
    assert golden_error(stored, "cls", summary.numpy()) < 5e-5


WRAPPINGS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "teacher with heads": lambda state: {"teacher": {**_prefixed(state, "backbone."), **heads()}},
    "no wrapper": lambda state: state,
    "module": lambda state: {"state_dict": _prefixed(state, "module.")},
    "module and backbone": lambda state: {"model": _prefixed(state, "module.backbone.")},
    "student": lambda state: {"student": _prefixed(state, "backbone."), "iteration": 7},
    "nested": lambda state: {"model": {"teacher": _prefixed(state, "backbone.")}, "optimizer": {}},
    "beside numbers": lambda state: {**state, "iteration": 7},
}


@pytest.mark.parametrize("chunk", [2, 0])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_wrapping_is_read(tmp_path: Path, wrapping: str, chunk: int) -> None:
    encoder = toy_vit()
    torch.save(WRAPPINGS[wrapping](rule_state(encoder, chunk=chunk)), tmp_path / "weights.pth")
    report = load_encoder(encoder, tmp_path / "weights.pth")
    assert (report.loaded, report.missing, report.unexpected, report.reshaped) == (63, (), (), ())
    assert _state_equals(encoder, rule_state(encoder, chunk=0))


def test_heads_are_left_out_and_reported(tmp_path: Path) -> None:
    encoder = toy_vit()
    report = load_encoder(encoder, teacher_file(tmp_path / "weights.pth", encoder))
    assert "63 of 63 encoder tensors loaded (100 %)" in report.summary()
    assert "took 'teacher'" in report.summary()
    assert "left out 16 tensors of dino_head, ibot_head" in report.summary()


def test_the_teacher_is_preferred_to_the_student_and_the_report_says_so(tmp_path: Path) -> None:
    encoder = toy_vit()
    state = rule_state(encoder, chunk=2)
    torch.save({"student": {name: 2 * tensor for name, tensor in state.items()}, "teacher": state}, tmp_path / "a.pth")
    assert "took 'teacher', left out 'student'" in load_encoder(encoder, tmp_path / "a.pth").summary()
    assert _state_equals(encoder, rule_state(encoder, chunk=0))


def test_half_precision_safetensors_without_a_header_are_read(tmp_path: Path) -> None:
    encoder = toy_vit()
    save_file(
        {name: tensor.half() for name, tensor in rule_state(encoder, chunk=2).items()}, tmp_path / "a.safetensors"
    )
    assert load_encoder(encoder, tmp_path / "a.safetensors").loaded == 63
    assert encoder.norm.weight.dtype == torch.float32


def test_our_own_file_loads_into_a_fresh_encoder(tmp_path: Path) -> None:
    source, target = toy_vit((24, 16, 32)), toy_vit((24, 16, 32))
    save_encoder(tmp_path / "encoder.safetensors", source, toy_header(source))
    assert load_encoder(target, tmp_path / "encoder.safetensors").summary() == "63 of 63 encoder tensors loaded (100 %)"
    assert _state_equals(target, source.state_dict())


def test_a_table_of_another_cube_is_resampled_and_reported(tmp_path: Path) -> None:
    source, target = toy_vit((24, 24, 24)), toy_vit((32, 24, 16))
    teacher_file(tmp_path / "a.pth", source)
    report = load_encoder(target, tmp_path / "a.pth")
    assert report.reshaped == ("pos_embed resampled from 3x3x3 to 4x3x2 tokens",)
    table = rule_state(source, chunk=0)["pos_embed"]
    expected = resample_positions(table[:, 1:], (3, 3, 3), (4, 3, 2), rule="scale_factor")
    assert torch.equal(target.pos_embed[:, 1:], expected)
    assert torch.equal(target.pos_embed[:, :1], table[:, :1])
    assert target.patch_embed.proj.weight.equal(rule_state(source, chunk=0)["patch_embed.proj.weight"])


def test_equal_counts_of_positions_on_another_grid_are_resampled(tmp_path: Path) -> None:
    source, target = toy_vit((16, 48, 24)), toy_vit((48, 24, 16))
    save_encoder(tmp_path / "a.safetensors", source, toy_header(source))
    assert load_encoder(target, tmp_path / "a.safetensors").reshaped == (
        "pos_embed resampled from 2x6x3 to 6x3x2 tokens",
    )
    assert not torch.equal(target.pos_embed, source.pos_embed)


def _change(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    state = rule_state(toy_vit(), chunk=0)
    change(state)
    torch.save(state, path)
    return path


def test_missing_tensors_are_refused_with_their_names(tmp_path: Path) -> None:
    encoder = toy_vit()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    path = _change(tmp_path / "a.pth", lambda state: [state.pop(f"blocks.1.ls{i}.gamma") for i in (1, 2)])
    with pytest.raises(ValueError, match=r"61 of 63 .*2 missing \(blocks.1.ls1.gamma, blocks.1.ls2.gamma\)"):
        load_encoder(encoder, path)
    assert _state_equals(encoder, before)


def test_a_missing_block_is_named_as_missing_tensors(tmp_path: Path) -> None:
    path = _change(tmp_path / "a.pth", lambda state: [state.pop(n) for n in list(state) if n.startswith("blocks.2.")])
    with pytest.raises(ValueError, match=r"49 of 63 .*14 missing \(blocks.2.attn.proj.bias, .*10 more\)"):
        load_encoder(toy_vit(), path)


def test_unexpected_tensors_are_refused_with_their_names(tmp_path: Path) -> None:
    path = _change(tmp_path / "a.pth", lambda state: state.update(register_tokens=torch.ones(1, 4, 16)))
    with pytest.raises(ValueError, match=r"1 unexpected \(register_tokens\)"):
        load_encoder(toy_vit(), path)


def test_a_mask_token_that_a_foreign_file_lacks_is_zero_and_no_gap(tmp_path: Path) -> None:
    encoder = toy_vit()
    torch.nn.init.ones_(encoder.mask_token)
    report = load_encoder(encoder, _change(tmp_path / "a.pth", lambda state: state.pop("mask_token")))
    assert (report.loaded, report.total, report.missing) == (63, 63, ())
    assert "mask_token is not in the file and is zero" in report.summary()
    assert not encoder.mask_token.any()


def test_partial_loading_reports_what_it_left(tmp_path: Path) -> None:
    def change(state: dict[str, Tensor]) -> None:
        state.pop("norm.weight")
        state["register_tokens"] = torch.ones(1, 4, 16)

    encoder = toy_vit()
    report = load_encoder(encoder, _change(tmp_path / "a.pth", change), allow_partial=True)
    assert (report.loaded, report.missing, report.unexpected) == (62, ("norm.weight",), ("register_tokens",))
    assert "62 of 63 encoder tensors loaded (98.41 %)" in report.summary()
    assert torch.equal(encoder.norm.bias, rule_state(encoder, chunk=0)["norm.bias"])


@pytest.mark.parametrize("allow_partial", [False, True])
def test_a_wrong_shape_is_named_with_both_shapes(tmp_path: Path, allow_partial: bool) -> None:
    path = _change(tmp_path / "a.pth", lambda state: state.update({"blocks.3.mlp.fc1.bias": torch.ones(32)}))
    with pytest.raises(ValueError, match=r"blocks.3.mlp.fc1.bias \(32,\) instead of \(64,\)"):
        load_encoder(toy_vit(), path, allow_partial=allow_partial)


def test_weights_with_nan_are_refused(tmp_path: Path) -> None:
    path = _change(tmp_path / "a.pth", lambda state: state["norm.bias"].fill_(float("nan")))
    with pytest.raises(ValueError, match=r"1 tensors hold NaN or infinity \(norm.bias\)"):
        load_encoder(toy_vit(), path)


def test_two_chunks_with_local_block_numbers_are_refused(tmp_path: Path) -> None:
    state = rule_state(toy_vit(), chunk=0)
    local = {
        name.replace("blocks.2.", "blocks.1.0.").replace("blocks.0.", "blocks.0.0."): t for name, t in state.items()
    }
    torch.save(local, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"two of its tensors are called 'blocks.0\."):
        load_encoder(toy_vit(), tmp_path / "a.pth")


def test_positions_that_fill_no_cube_are_refused_unless_they_fit(tmp_path: Path) -> None:
    torch.save(rule_state(toy_vit((32, 24, 16)), chunk=2), tmp_path / "a.pth")
    assert load_encoder(toy_vit((32, 24, 16)), tmp_path / "a.pth").reshaped == ()
    with pytest.raises(ValueError, match="24 positions, which fill no cube; expected a cube or 3x3x3"):
        load_encoder(toy_vit(), tmp_path / "a.pth")


def test_another_size_of_encoder_is_named_with_the_word_to_type(tmp_path: Path) -> None:
    source = build_encoder("vit_tiny_16", native_crop=(32, 32, 32))
    torch.save(source.state_dict(), tmp_path / "a.pth")
    with torch.device("meta"):
        asked = build_encoder("vit_small_16")
    with pytest.raises(ValueError) as caught:
        load_encoder(asked, tmp_path / "a.pth")
    expected = (
        "the weights hold a ViT (dim 192, depth 12, patch 16); asked for vit_small_16 (dim 384): use -e vit_tiny_16"
    )
    assert expected in str(caught.value) and "\n" not in str(caught.value)
