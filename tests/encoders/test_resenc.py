"""The residual encoder agrees with the one inside nnU-Net's ResEnc-L network."""

import copy
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from nnssl.encoders import build_encoder, encoder_spec
from nnssl.encoders.base import Encoder

unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")

TINY = {"widths": [4, 6, 8, 8], "depths": [1, 2, 1, 1]}
RESENC_L = {
    "n_stages": 6,
    "features_per_stage": [32, 64, 128, 256, 320, 320],
    "n_blocks_per_stage": [1, 3, 4, 6, 6, 6],
}


def peer(input_channels: int = 1, **sizes: object) -> nn.Module:
    """nnU-Net's network, arguments as its ResEnc-L preset has them."""
    stages = int(sizes["n_stages"])  # type: ignore[call-overload]
    return unet.ResidualEncoderUNet(
        input_channels,
        conv_op=nn.Conv3d,
        kernel_sizes=[[3, 3, 3]] * stages,
        strides=[[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        num_classes=2,
        n_conv_per_stage_decoder=[1] * (stages - 1),
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        **sizes,
    ).eval()


def tiny() -> Encoder:
    torch.manual_seed(0)
    return build_encoder("resenc_l", native_crop=(16, 16, 16), options=TINY).eval()


def test_facts_are_the_published_ones() -> None:
    spec = encoder_spec("resenc_l")
    assert spec.channels == (32, 64, 128, 256, 320, 320) and spec.strides == (1, 2, 4, 8, 16, 32)
    assert (spec.crop_multiple, spec.depth, spec.is_pyramid, spec.maskable) == (32, 26, True, False)


def test_every_parameter_is_one_of_the_published_encoder_and_has_one_name() -> None:
    with torch.device("meta"):
        encoder = build_encoder("resenc_l")
        network = peer(**RESENC_L)
    names = [name for name in network.state_dict() if name.startswith("encoder.") and ".all_modules." not in name]
    assert {f"encoder.{name}" for name in encoder.state_dict()} == set(names)
    count = sum(parameter.numel() for parameter in network.encoder.parameters())  # type: ignore[union-attr]
    assert sum(parameter.numel() for parameter in encoder.parameters()) == count == 90_296_576


def test_the_maps_are_those_of_the_published_class() -> None:
    encoder, volume = tiny(), torch.rand(2, 1, 16, 24, 32)
    network = peer(n_stages=4, features_per_stage=[4, 6, 8, 8], n_blocks_per_stage=[1, 2, 1, 1])
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        state = network.encoder.state_dict()  # type: ignore[union-attr]
        ours = encoder.state_dict()
        aliases = {"all_modules.0": "conv", "all_modules.1": "norm"}
        for name in state:
            short = name
            for alias, real in aliases.items():
                short = short.replace(alias, real)
            state[name] = ours[short]
        network.encoder.load_state_dict(state)  # type: ignore[union-attr]
        wanted = network.encoder(volume)  # type: ignore[operator]
        features = encoder(volume)
    assert [tuple(one.shape[1:]) for one in features.maps] == [
        (4, 16, 24, 32),
        (6, 8, 12, 16),
        (8, 4, 6, 8),
        (8, 2, 3, 4),
    ]
    assert all(torch.equal(one, other) for one, other in zip(features.maps, wanted, strict=True))
    assert features.tokens["patch"].shape == (2, 24, 8)
    assert torch.allclose(features.summary, features.tokens["patch"].mean(1))


def test_copies_and_safetensors_keep_the_weights(tmp_path: Path) -> None:
    encoder, volume = tiny(), torch.rand(1, 1, 16, 16, 16)
    twin = copy.deepcopy(encoder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(1.5)
        assert not torch.equal(twin(volume).maps[-1], encoder(volume).maps[-1]), "the copy must not share weights"
        safetensors.torch.save_file(encoder.state_dict(), tmp_path / "weights")
        twin.load_state_dict(safetensors.torch.load_file(tmp_path / "weights"))
        assert torch.equal(twin(volume).maps[-1], encoder(volume).maps[-1])


def test_gradients_in_bfloat16_are_right_on_maps_of_two_cells() -> None:
    encoder, volume = tiny().train(), torch.rand(1, 1, 16, 32, 32)
    nn.init.ones_(encoder.get_parameter("stages.3.blocks.0.conv2.norm.weight"))
    gradients = []
    for enabled in (False, True):
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            deepest = encoder(volume).maps[-1].float()
        (deepest * torch.linspace(-1, 1, deepest.numel()).view_as(deepest)).sum().backward()
        gradients.append(encoder.get_parameter("stages.3.blocks.0.conv2.conv.weight").grad)
    exact, half = gradients
    assert exact is not None and half is not None
    assert (exact - half).norm() < 0.2 * exact.norm()


def test_tokens_cannot_be_hidden() -> None:
    with pytest.raises(ValueError, match="its tokens cannot be hidden"):
        tiny()(torch.rand(1, 1, 16, 16, 16), torch.zeros(1, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="give as many of both"):
        encoder_spec("resenc_l", options={"widths": [4, 8]})
