"""MONAI's ViT is read where it is the same network as ours, and refused by name where it is not."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nnssl.weights.encoder_file import read_weights
from nnssl.weights.identify import identify
from nnssl.weights.load import load_weights
from tests.rules import normal

monai_nets = pytest.importorskip("monai.networks.nets")


def _monai_vit(**words: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "mlp_dim": 96, "num_layers": 2, "num_heads": 2}
    network = monai_nets.ViT(1, (16, 16, 16), (8, 8, 8), **(sizes | words))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_a_monai_vit_with_a_class_token_gives_monais_features(tmp_path: Path, qkv_bias: bool) -> None:
    peer = _monai_vit(classification=True, qkv_bias=qkv_bias)
    torch.save({"state_dict": {f"net.{name}": value for name, value in peer.state_dict().items()}}, tmp_path / "a")
    weights = read_weights(tmp_path / "a", options={"heads": 2})
    encoder = identify(weights).build().eval()
    report = load_weights(encoder, weights)
    assert weights.format_name == "monai-vit" and report.loaded == report.total
    assert "layer scales set to 1" in report.summary()
    volume = torch.from_numpy(normal("input", (2, 1, 16, 16, 16)))
    with torch.inference_mode():
        features = encoder(volume)
        tokens = torch.cat([peer.cls_token.expand(2, -1, -1), peer.patch_embedding(volume)], dim=1)  # type: ignore[operator]
        for block in peer.blocks:  # type: ignore[union-attr]
            tokens = block(tokens)
        expected = peer.norm(tokens)  # type: ignore[operator]
    # the eps of the norms differ: 1e-5 there, 1e-6 here
    torch.testing.assert_close(features.tokens["patch"], expected[:, 1:], atol=2e-4, rtol=0)
    torch.testing.assert_close(features.summary, expected[:, 0], atol=2e-4, rtol=0)


def test_a_unetr_is_refused_because_it_has_no_class_token(tmp_path: Path) -> None:
    tensors = {f"vit.{name}": tensor for name, tensor in _monai_vit().state_dict().items()}
    torch.save({**tensors, "encoder1.layer.conv1.conv.weight": torch.ones(2)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="without a class token") as caught:
        read_weights(tmp_path / "a.pth")
    assert "\n" not in str(caught.value)


def test_a_perceptron_patch_embedding_is_refused(tmp_path: Path) -> None:
    torch.save(_monai_vit(classification=True, proj_type="perceptron").state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match="perceptron"):
        read_weights(tmp_path / "a.pth")
