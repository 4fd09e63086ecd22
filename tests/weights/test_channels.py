"""Weights for another number of image channels keep the answer to equal channels."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from nnssl.encoders import build_encoder
from nnssl.weights.channels import fit_channels
from nnssl.weights.encoder_file import read_weights
from nnssl.weights.identify import identify
from nnssl.weights.load import load_weights
from tests.rules import normal


@pytest.mark.parametrize(("stored", "wanted"), [(1, 4), (4, 1), (2, 3), (3, 2), (3, 3)])
def test_copies_of_one_image_give_the_stored_answer(stored: int, wanted: int) -> None:
    kernel = torch.from_numpy(normal("kernel", (5, stored, 2, 2, 2)))
    image = torch.from_numpy(normal("image", (1, 1, 4, 4, 4)))
    expected = functional.conv3d(image.expand(-1, stored, -1, -1, -1), kernel, stride=2)
    fitted = fit_channels(kernel, wanted)
    assert fitted.shape == (5, wanted, 2, 2, 2) and fitted.is_contiguous()
    found = functional.conv3d(image.expand(-1, wanted, -1, -1, -1), fitted, stride=2)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_every_channel_gets_the_same_share() -> None:
    kernel = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1, 1)
    assert fit_channels(kernel, 4).flatten().tolist() == [1.0] * 4


@pytest.mark.parametrize("name", ["vit_tiny_8", "swin_tiny"])
def test_a_file_of_four_channels_serves_an_encoder_of_two(name: str, tmp_path: Path) -> None:
    crop = (32, 32, 32)
    torch.manual_seed(0)
    source = build_encoder(name, native_crop=crop, options={"input_channels": 4}).eval()
    torch.save(source.state_dict(), tmp_path / "a.pth")
    switches = {"window_reverse": "correct"} if name == "swin_tiny" else {}
    weights = read_weights(tmp_path / "a.pth", switches)
    found = identify(weights)
    assert found.options == {"input_channels": 4}
    target = found.with_channels(2).build().eval()
    report = load_weights(target, weights)
    assert report.reshaped[0] == "patch_embed.proj.weight adapted from 4 to 2 channels (mean, repeated, same sum)"
    image = torch.from_numpy(normal("input", (1, 1, *crop)))
    with torch.inference_mode():
        first = source(image.expand(-1, 4, -1, -1, -1)).maps[-1]
        second = target(image.expand(-1, 2, -1, -1, -1)).maps[-1]
    torch.testing.assert_close(first, second, atol=1e-4, rtol=0)
