"""Encoder files are written whole, read by content, and damaged or hostile ones end in one line."""

import argparse
import errno
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from nnssl.encoders.base import IntensityRange
from nnssl.weights.encoder_file import read_header, read_weights, save_encoder, sha256
from nnssl.weights.header import EncoderHeader, record_cases
from tests.weights.toy_files import rule_state, teacher_file, toy_header, toy_vit


class Hostile:
    """Unpickling it would create a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)


def _saved(path: Path, **settings: Any) -> Path:
    encoder = toy_vit()
    save_encoder(path, encoder, toy_header(encoder, **settings))
    return path


def test_tensors_and_header_survive(tmp_path: Path) -> None:
    encoder = toy_vit()
    header = toy_header(encoder, spacing_mm=(1.0, 1.0, 1.5), task="threedino", steps=3, data=record_cases([("D", "c")]))
    save_encoder(tmp_path / "new" / "encoder.safetensors", encoder, header)
    weights = read_weights(tmp_path / "new" / "encoder.safetensors")
    assert (weights.header, weights.format_name, weights.notes) == (header, "nnssl", [])
    assert all(torch.equal(weights.tensors[name], tensor) for name, tensor in encoder.state_dict().items())


def test_a_stock_safetensors_reader_finds_the_published_names(tmp_path: Path) -> None:
    with safe_open(_saved(tmp_path / "a"), framework="np") as file:
        assert file.get_tensor("blocks.3.attn.qkv.weight").shape == (48, 16)


def test_the_header_is_read_without_the_tensors_and_absent_elsewhere(tmp_path: Path) -> None:
    assert read_header(_saved(tmp_path / "a", steps=5)) == toy_header(toy_vit(), steps=5)
    assert read_header(teacher_file(tmp_path / "b.pth", toy_vit())) is None
    safetensors.torch.save_file(rule_state(toy_vit(), chunk=2), tmp_path / "c")
    assert read_header(tmp_path / "c") is None


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    assert read_weights(_saved(tmp_path / "a.pth")).format_name == "nnssl"
    assert read_weights(teacher_file(tmp_path / "b.safetensors", toy_vit())).format_name == "3dino"


def test_an_old_style_pytorch_file_is_read(tmp_path: Path) -> None:
    torch.save(rule_state(toy_vit(), chunk=2), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert len(read_weights(tmp_path / "a.pth").tensors) == 63


def test_a_safetensors_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path) -> None:
    state = rule_state(toy_vit(), chunk=0)
    for filler in range(0, 300, 8):
        safetensors.torch.save_file(state, tmp_path / "a", metadata={"filler": "x" * filler})
        if (tmp_path / "a").read_bytes()[0] == 0x80:
            break
    assert (tmp_path / "a").read_bytes()[:1] == b"\x80"
    assert len(read_weights(tmp_path / "a").tensors) == 63


def test_planted_names_are_not_in_the_file(tmp_path: Path) -> None:
    record = record_cases([("Dataset077_SecretStudy", "PatientMueller_01")])
    content = _saved(tmp_path / "a", data=record, plan={"lr": 1e-3}).read_bytes()
    for planted in (b"SecretStudy", b"Mueller", str(tmp_path).encode()):
        assert planted not in content


@pytest.mark.parametrize(("name", "crop"), [("vit_small_16", (24, 24, 24)), ("vit_toy_8", (24, 24, 32))])
def test_a_header_of_another_encoder_is_refused(tmp_path: Path, name: str, crop: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="the header says"):
        save_encoder(tmp_path / "a", toy_vit(), EncoderHeader(name, crop, IntensityRange()))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_earlier_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _saved(tmp_path / "a").read_bytes()

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="the disk is full; free space") as caught:
        _saved(tmp_path / "a")
    assert caught.value.errno == errno.ENOSPC
    assert (tmp_path / "a").read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_others_may_read_a_saved_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    assert _saved(tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def _one_line(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        read_weights(path)
    text = str(caught.value)
    assert text.startswith(f"reading weights {path}: ") and "\n" not in text and len(text) < 400 + len(str(path))
    return text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html>Log in</html>", "web page"),
        (b"\xef\xbb\xbf\n  <html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\x1f\x8b\x08\x00abc", "neither safetensors nor a PyTorch file"),
        (b"short", "neither safetensors nor a PyTorch file"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{", "truncated or damaged"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{'no': json}   \x00", "truncated or damaged"),
        (b"\x80\x02", "damaged"),
        (b"PK\x03\x04rest", "truncated or damaged"),
    ],
)
def test_a_file_that_is_no_weights_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    assert reason in _one_line(tmp_path / "a.pth")


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_weights(tmp_path / "absent.pth")
    assert "it is a folder" in _one_line(tmp_path)


@pytest.mark.parametrize("style", ["zip", "old", "pickle"])
def test_a_hostile_file_is_refused_and_nothing_is_run(tmp_path: Path, style: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "a.pth"
    content = {"teacher": {"cls_token": torch.ones(1)}, "extra": Hostile(mark)}
    if style == "pickle":
        path.write_bytes(pickle.dumps({"teacher": Hostile(mark)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=style == "zip")
    text = _one_line(path)
    assert "it asks for getattr, which is not a tensor" in text and "nothing was run" in text
    assert not mark.exists()
    with path.open("rb") as file:  # the trap itself works
        torch.load(file, weights_only=False) if style != "pickle" else pickle.load(file)
    assert mark.exists()


def test_numbers_of_numpy_and_a_namespace_beside_the_weights_are_no_reason_to_refuse(tmp_path: Path) -> None:
    """What training scripts save beside the weights: a best accuracy and their arguments."""
    beside = {"best_acc": np.float64(0.8), "epoch": np.int64(3), "args": argparse.Namespace(lr=1e-4, data=[1])}
    for zipped in (True, False):
        content = {"state_dict": rule_state(toy_vit(), chunk=0), **beside}
        torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        assert len(read_weights(tmp_path / "a.pth").tensors) == 63


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (torch.ones(3), "it holds a Tensor"),
        ([torch.ones(3)], "it holds a list"),
        ({}, "it has none"),
        ({"cls_token": torch.ones(2, device="meta")}, "no tensors among its entries (cls_token)"),
        ({"teacher": {}}, "no tensors among its entries"),
        ({"epoch": 3, "note": "x"}, "no tensors among its entries (epoch, note)"),
        ({"conv.weight": torch.ones(3)}, "of no known layout; known: nnssl, 3dino"),
        ({"version": 1, "steps_done": 3, "task": {}, "optimiser": {}}, "give the encoder.safetensors beside it"),
        ({"renamed.layers_0_blocks_0.qkv": torch.ones(1)}, "of no known layout"),
    ],
)
def test_content_without_an_encoder_is_named(tmp_path: Path, content: Any, reason: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    assert reason in _one_line(tmp_path / "a.pth")


def test_other_zip_files_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones(3))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    for name in ("a.npz", "b.zip"):
        assert "truncated or damaged" in _one_line(tmp_path / name)


def test_a_damaged_header_in_a_sound_file_is_named(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "a", metadata={"nnssl": '{"encoder": 1}'})
    assert "the header is damaged" in _one_line(tmp_path / "a")


@pytest.mark.parametrize("kind", ["safetensors", "zip", "old"])
def test_cutting_or_changing_a_file_anywhere_never_ends_in_another_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    tensors = {name: tensor[..., :2].contiguous() for name, tensor in rule_state(toy_vit(depth=1), chunk=2).items()}
    if kind == "safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save({"teacher": tensors}, path, _use_new_zipfile_serialization=kind == "zip")
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for i in range(60):
        position = int(random.integers(len(whole)))
        changed = bytes([*whole[:position], *random.bytes(3), *whole[position + 3 :]])
        path.write_bytes(whole[:position] if i % 2 else changed)
        try:
            read_weights(path)  # a change inside the numbers cannot be noticed
            assert i % 2 == 0
        except ValueError as error:
            assert "\n" not in str(error)
