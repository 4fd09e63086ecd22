"""What takes minutes: run by hand with `make proof`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nnssl.networks.segmentor import EncoderSegmentor

pytestmark = pytest.mark.proof


def test_the_demo_on_embedded_data_reaches_a_foreground_dice_of_070(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "nnssl_demo"), "-o", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    pretrained, random = json.loads((tmp_path / "demo/evaluation/evaluation.json").read_text())["runs"]
    assert pretrained["foreground_mean"]["dice"]["mean"] > 0.70
    assert len(pretrained["cases"]) == len(random["cases"]) == 6


def test_the_published_size_segments_a_crop_of_112_voxels() -> None:
    network = EncoderSegmentor(1, 14, "vit_large_16").eval()
    assert sum(p.numel() for p in network.encoder.parameters()) == 306_910_208
    with torch.inference_mode():
        logits = network(torch.rand(1, 1, 112, 112, 112))
    assert logits.shape == (1, 14, 112, 112, 112) and logits.isfinite().all()
