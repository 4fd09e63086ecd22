"""The encoder inside a checkpoint of nnssl_train comes out with its options, crop, intensity and additions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nnssl.config import to_dict
from nnssl.encoders.base import Encoder, IntensityRange
from nnssl.networks.segmentor import EncoderSegmentor
from nnssl.weights.encoder_file import read_weights
from nnssl.weights.identify import identify
from nnssl.weights.load import load_weights
from nnssl.weights.sources import SOURCES, source_of
from tests.rules import normal

INTENSITY = IntensityRange("window", -200.0, 300.0, (0.0, 1.0))
SIZES = {"depths": [1, 1, 1, 1], "window_reverse": "legacy"}
ARGUMENTS: dict[str, Any] = {
    "encoder": "swin_tiny",
    "decoder": "unet",
    "native_crop": [32, 32, 64],
    "encoder_options": SIZES,
    "precision": "fp32",
}


def _checkpoint(tensors: dict[str, Tensor], arguments: dict[str, Any]) -> dict[str, Any]:
    plans = {
        "plans_name": "nnsslPlans_swin_tiny",
        "configurations": {"3d_fullres": {"architecture": {"arch_kwargs": arguments}}},
        "nnssl": {"encoder": "swin_tiny", "native_crop": [32, 32, 64], "intensity": to_dict(INTENSITY)},
    }
    init_args = {"plans": plans, "configuration": "3d_fullres", "fold": 0}
    return {"network_weights": tensors, "init_args": init_args, "trainer_name": "FrozenEncoderTrainer"}


def _segmentor(input_channels: int = 1, **words: Any) -> EncoderSegmentor:
    torch.manual_seed(0)
    return EncoderSegmentor(input_channels, 2, **(ARGUMENTS | words)).eval()


def _loaded(path: Path) -> tuple[Encoder, str]:
    weights = read_weights(path)
    encoder = identify(weights).build().eval()
    return encoder, load_weights(encoder, weights).summary()


@pytest.mark.parametrize("words", [{}, {"channels": "replicate"}, {"lora_rank": 2}])
def test_the_encoder_of_a_fine_tuned_segmentor_gives_its_features(tmp_path: Path, words: dict[str, Any]) -> None:
    channels = 2 if words.get("channels") else 1
    segmentor = _segmentor(channels, **words)
    for name, parameter in segmentor.named_parameters():
        if name.endswith("low_rank_b"):
            torch.nn.init.normal_(parameter, std=0.1)
    torch.save(_checkpoint(segmentor.state_dict(), ARGUMENTS | words), tmp_path / "checkpoint_final.pth")
    encoder, summary = _loaded(tmp_path / "checkpoint_final.pth")
    spec = encoder.spec
    assert (spec.name, spec.native_crop, spec.intensity) == ("swin_tiny", (32, 32, 64), INTENSITY)
    assert spec.input_channels == channels and spec.options.items() >= SIZES.items()
    assert "tensors of decoder" in summary and ("low-rank additions of 8 layers" in summary) == ("lora_rank" in words)
    volume = torch.from_numpy(normal("input", (1, channels, 32, 32, 32)))
    with torch.inference_mode():
        pairs = zip(encoder(volume).maps, segmentor.encoder(volume).maps, strict=True)
        assert all(torch.allclose(found, expected, atol=1e-5) for found, expected in pairs)


def test_the_licence_of_a_published_file_stays_with_what_was_fine_tuned_from_it(tmp_path: Path) -> None:
    checkpoint = _checkpoint(_segmentor().state_dict(), ARGUMENTS)
    for origin, source in (("smit", SOURCES["smit"]), (None, None)):
        checkpoint["init_args"]["plans"]["nnssl"]["run"] = {"weights_origin": origin}
        torch.save(checkpoint, tmp_path / "checkpoint_final.pth")
        assert source_of(read_weights(tmp_path / "checkpoint_final.pth")) is source


def test_checkpoints_of_the_first_version_are_read(tmp_path: Path) -> None:
    """There the neck was called adapter."""
    tensors = {name.replace("neck.", "adapter."): tensor for name, tensor in _segmentor().state_dict().items()}
    torch.save(_checkpoint(tensors, ARGUMENTS), tmp_path / "a.pth")
    assert _loaded(tmp_path / "a.pth")[0].spec.native_crop == (32, 32, 64)


def test_a_checkpoint_without_an_encoder_or_with_half_its_plans_is_named(tmp_path: Path) -> None:
    torch.save(_checkpoint({"decoder.a": torch.ones(1)}, ARGUMENTS), tmp_path / "a.pth")
    with pytest.raises(ValueError, match="without an encoder"):
        read_weights(tmp_path / "a.pth")
    torch.save(_checkpoint(_segmentor().state_dict(), {}), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"plans inside this checkpoint of nnssl_train are incomplete \('encoder'\)"):
        read_weights(tmp_path / "a.pth")
