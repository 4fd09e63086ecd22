"""What the tests of nnssl_train share: the command on the toy data set, encoder files, and refused starts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nnssl.commands.train import main
from nnssl.encoders import build_encoder
from nnssl.encoders.base import IntensityRange
from nnssl.weights.encoder_file import save_encoder
from nnssl.weights.header import EncoderHeader
from tests.toy_dataset import ENCODER, HIGH, LOW, NAME, NATIVE_CROP, PLANS

WINDOW = IntensityRange("window", LOW, HIGH)
QUICK = ["-device", "cpu", "--no_validation", "--set", "epochs=1", "iterations_per_epoch=1"]


def write_encoder(path: Path, **header: Any) -> Path:
    torch.manual_seed(3)
    values = {"encoder": ENCODER, "native_crop": tuple(NATIVE_CROP), "intensity": WINDOW, **header}
    encoder = build_encoder(values["encoder"], native_crop=values["native_crop"], options=values.get("encoder_options"))
    save_encoder(path, encoder, EncoderHeader(**values))
    return path


def train(*words: str | Path) -> int:
    return main([NAME, "3d_fullres", "0", "-p", PLANS, *map(str, words)])


def refused(capsys: pytest.CaptureFixture[str], results: Path, *words: str | Path) -> str:
    """The one line of a refused start that wrote nothing."""
    assert train(*words) == 2
    assert not list(results.rglob("*"))
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def tensors_of(file: Path) -> dict[str, torch.Tensor]:
    return load_file(file)
