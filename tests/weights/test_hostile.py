"""Files that were made to do harm, or that contradict themselves, end in one line; nothing is run, nothing is built."""

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from nnssl.encoders import build_encoder
from nnssl.encoders.base import Encoder, IntensityRange
from nnssl.weights.encoder_file import read_weights
from nnssl.weights.export import nnunet_checkpoint
from nnssl.weights.header import EncoderHeader, header_to_text
from nnssl.weights.identify import identify
from nnssl.weights.load import load_weights
from nnssl.weights.torch_file import read_torch
from tests.weights.toy_files import swin_tensors

ONE = torch.ones(1)
SIDE = (16, 16, 16)
PLAN = "nnssl_adaptation_plan"


def _load(path: Path) -> None:
    weights = read_weights(path)
    load_weights(identify(weights).build(), weights)


def _refusal(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        _load(path)
    text = str(caught.value).replace(str(path), "")
    assert text.isprintable() and len(text) < 600
    return text


@pytest.fixture(scope="module")
def small() -> Encoder:
    torch.manual_seed(0)
    return build_encoder("vit_tiny_8", native_crop=SIDE, options={"depth": 1})


@pytest.fixture(scope="module")
def swin() -> dict[str, Tensor]:
    return swin_tensors(24, (1, 1, 2, 1), (2, 2, 4, 8), 4, qkv_bias=False)


def _header() -> EncoderHeader:
    return EncoderHeader("vit_tiny_8", SIDE, IntensityRange(), encoder_options={"depth": 1})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"encoder": "evil"}, "encoder 'evil' is unknown; known encoders: "),
        ({"encoder": "x" * 10**6}, "is no name of letters"),
        ({"encoder": "swin_tiny"}, "SwinShape has no setting 'depth'"),
        ({"encoder": "vit_giant_8"}, "the file names vit_giant_8 with dim 1536, but its tensors show dim 192"),
        ({"encoder_options": {"depth": 1, "colour": 1}}, "has no setting 'colour'"),
        ({"encoder_options": {"depth": 10**9}}, "with depth 1000000000, but its tensors show depth 1"),
        ({"encoder_options": {"depth": "1"}}, "setting 'depth': expected int, got '1'"),
        ({"encoder_options": 3}, "its encoder_options is int, not a dictionary"),
        ({"encoder_options": {"depth": 1, "heads": 0}}, "heads 0: must be 1 or more"),
        ({"encoder_options": {"depth": 1, "heads": -3}}, "heads -3: must be 1 or more"),
        ({"encoder_options": {"depth": 1, "heads": 5}}, "cannot be split into 5 heads"),
        ({"encoder_options": {"depth": 1, "patch": 0}}, "patch 0: must be 1 or more"),
        ({"encoder_options": {"depth": 1, "input_channels": 0}}, "input_channels 0: must be 1 or more"),
        ({"native_crop": [80000, 80000, 80000]}, "native crop (80000, 80000, 80000) contradicts 8 positions"),
        ({"native_crop": [0, 0, 0]}, "crop (0, 0, 0) does not fit"),
        ({"plan": 3}, "its plan is int, not a dictionary"),
        ({"spacing_mm": [1, 1, float("nan")]}, "not three numbers of mm above 0"),
        ({"intensity": {"encoder_range": [1, -1]}}, "finite bounds, the lower one first"),
        ({"intensity": {"encoder_range": [0, float("inf")]}}, "finite bounds, the lower one first"),
    ],
)
def test_a_header_that_lies_is_refused_before_an_encoder_is_built(
    small: Encoder, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    text = json.dumps(json.loads(header_to_text(_header())) | changes)
    safetensors.torch.save_file(small.state_dict(), tmp_path / "a", metadata={"nnssl": text})
    assert reason in _refusal(tmp_path / "a")


def test_the_same_file_with_its_own_header_is_loaded(small: Encoder, tmp_path: Path) -> None:
    safetensors.torch.save_file(small.state_dict(), tmp_path / "a", metadata={"nnssl": header_to_text(_header())})
    _load(tmp_path / "a")


def test_a_header_of_endless_brackets_is_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": ONE}, tmp_path / "a", metadata={"nnssl": "[" * 100_000})
    assert "the header is damaged" in _refusal(tmp_path / "a")


@pytest.mark.parametrize("length", [10**6, 10**8, 2**39])
def test_a_safetensors_header_longer_than_the_file_is_refused(length: int, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(struct.pack("<Q", length) + b"{" + b" " * 100)
    assert "truncated or damaged" in _refusal(tmp_path / "a")


@pytest.mark.parametrize("header", ["garbage", "", "3", "null", 3, ONE, b"\xff", {"encoder": "vit_tiny_8"}])
def test_garbage_in_place_of_the_header_of_an_exported_file_is_refused(
    small: Encoder, header: Any, tmp_path: Path
) -> None:
    torch.save(nnunet_checkpoint(small, _header()) | {"encoder_header": header}, tmp_path / "a")
    assert "the header is damaged" in _refusal(tmp_path / "a")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"native_crop": [16, 16, float("inf")]}, "is damaged"),
        ({"native_crop": 3}, "is incomplete"),
        ({"encoder": ["a"]}, "is incomplete (encoder ['a'])"),
        ({"encoder_options": 3}, "is incomplete"),
        ({"intensity": "x"}, "IntensityRange has no setting 'x'"),
    ],
)
def test_garbage_in_the_plan_of_an_exported_file_is_refused(
    small: Encoder, words: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    content = nnunet_checkpoint(small, _header())
    content.pop("encoder_header")
    content[PLAN]["architecture_plans"]["arch_kwargs"] |= words
    torch.save(content, tmp_path / "a")
    assert reason in _refusal(tmp_path / "a")


KERNEL, BIAS = "patch_embed.proj.weight", "patch_embed.proj.bias"
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "a block of a number without end": (
        {"layers.0.blocks.999999999.norm1.weight": ONE},
        "up to N = 999999999, but only 2 of them",
    ),
    "a width that no memory holds": ({KERNEL: ONE.view(1, 1, 1, 1, 1).expand(2**40, 1, 2, 2, 2)}, "no known layout"),
    "no width": ({KERNEL: torch.ones(0, 1, 2, 2, 2)}, "has shape (0, 1, 2, 2, 2)"),
    "no channels": ({KERNEL: torch.ones(24, 0, 2, 2, 2)}, "has shape (24, 0, 2, 2, 2)"),
    "no patch": ({KERNEL: torch.ones(24, 1, 0, 0, 0)}, "has shape (24, 1, 0, 0, 0)"),
    "heads that do not divide": (
        {"layers.0.blocks.0.attn.relative_position_bias_table": torch.ones(343, 5)},
        "cannot be split into 5 heads",
    ),
    "complex numbers": ({BIAS: torch.ones(24, dtype=torch.complex64)}, f"{BIAS} of type complex64"),
    "whole numbers": ({BIAS: torch.ones(24, dtype=torch.int8)}, f"{BIAS} of type int8"),
    "a sparse tensor": ({BIAS: torch.ones(24).to_sparse()}, f"1 missing ({BIAS})"),
    "a name that paints the terminal": ({"\x1b[31mred\n": ONE}, "1 unexpected ( [31mred )"),
    "a name without end": ({"x" * 10**6: ONE}, "1 unexpected (xxx"),
    "names without end": ({f"x.{number}": ONE for number in range(2_000)}, "2000 unexpected"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_tensors_that_make_no_encoder_are_refused(name: str, swin: dict[str, Tensor], tmp_path: Path) -> None:
    changes, reason = HOSTILE[name]
    torch.save(swin | changes, tmp_path / "a")
    assert reason in _refusal(tmp_path / "a")


def test_a_number_repeated_without_end_is_left_out(swin: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({**swin, "x": ONE.expand(2**43)}, tmp_path / "a")
    weights = read_weights(tmp_path / "a")
    assert "left out 1 entries that are no plain tensors" in weights.notes and "x" not in weights.tensors


def test_a_dictionary_that_lies_in_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {"x": ONE}
    content["model"] = content
    torch.save(content, tmp_path / "a")
    assert "lie in more than 8 dictionaries" in _refusal(tmp_path / "a")


def test_low_rank_additions_of_another_shape_are_refused(swin: dict[str, Tensor], tmp_path: Path) -> None:
    layer = "neck.encoder.layers.0.blocks.0.attn.qkv."
    tensors = {f"neck.encoder.{name}": tensor for name, tensor in swin.items()}
    tensors |= {f"{layer}low_rank_a": torch.ones(2, 24), f"{layer}low_rank_b": torch.ones(3, 3)}
    torch.save({"network_weights": tensors, "init_args": {"plans": {"nnssl": {}}}}, tmp_path / "a")
    assert "is damaged" in _refusal(tmp_path / "a")


class Touch:
    """Unpickling it would create a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)


def test_a_hostile_file_inside_an_archive_is_not_even_opened(tmp_path: Path) -> None:
    inner = io.BytesIO()
    torch.save({"x": Touch(tmp_path / "mark")}, inner)
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        archive.writestr("archive/data.pth", inner.getvalue())
    assert "truncated or damaged" in _refusal(tmp_path / "a") and not (tmp_path / "mark").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "value",
    [np.zeros(1, dtype=[("a", "O")])[0], np.dtype("O"), np.str_("x"), np.ones(2)],
    ids=lambda value: type(value).__name__,
)
def test_of_numpy_only_numbers_pass(value: Any, zipped: bool, tmp_path: Path) -> None:
    """A dtype believes what a file says of its fields: one of Python objects reads any address as an object."""
    torch.save({"x": value}, tmp_path / "a", _use_new_zipfile_serialization=zipped)
    text = _refusal(tmp_path / "a")
    assert "a numpy value of kind" in text or "it asks for numpy" in text


def test_numpys_numbers_come_out_as_those_of_python(tmp_path: Path) -> None:
    given = {"a": np.float64(0.8), "b": np.int16(-3), "c": np.bool_(True), "d": np.float32(1.5), "e": np.uint8(200)}
    torch.save(given, tmp_path / "a")
    found = read_torch(tmp_path / "a", old_style=False)
    assert found == {"a": 0.8, "b": -3, "c": True, "d": 1.5, "e": 200}
    assert [type(value) for value in found.values()] == [float, int, bool, float, int]


class Registered:
    """What another package may have declared safe in this process."""


def test_what_others_declared_safe_stays_declared_and_is_not_let_in(tmp_path: Path) -> None:
    torch.save({"x": Registered()}, tmp_path / "a")
    torch.save({"x": ONE, "best": np.float64(1)}, tmp_path / "b")
    with torch.serialization.safe_globals([Registered, np.dtype]):
        assert "Registered" in _refusal(tmp_path / "a")
        assert read_torch(tmp_path / "b", old_style=False)["best"] == 1
        assert set(torch.serialization.get_safe_globals()) >= {Registered, np.dtype}
        assert not any(isinstance(one, tuple) for one in torch.serialization.get_safe_globals())
    assert not {Registered, np.dtype} & set(torch.serialization.get_safe_globals())
