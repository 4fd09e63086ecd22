"""The segmentor of a plan: decoder, channel rule and the words that nnU-Net passes on."""

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnssl.encoders import encoder_spec
from nnssl.planners.network import choose_network
from nnssl.planners.plans_file import NETWORK
from nnssl.recipe import RECIPES


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [("vit_tiny_8", "unet"), ("swin_tiny", "swin_unetr"), ("primus_s", "unetr"), ("resenc_l", "unet")],
)
def test_every_family_has_a_decoder_that_fits(encoder: str, decoder: str) -> None:
    plan = choose_network(encoder_spec(encoder), input_channels=1, num_classes=2)
    assert (plan.decoder, plan.frozen, plan.channels) == (decoder, True, "mix")
    assert (plan.adapter_width is not None) == (encoder == "vit_tiny_8")
    assert ("adapter_width" in plan.arch_kwargs(plan.encoder)) == (encoder == "vit_tiny_8")


def test_a_decoder_that_does_not_fit_is_refused_with_those_that_do() -> None:
    with pytest.raises(ValueError, match=r"'swin_unetr' on encoder 'vit_tiny_8'.*unet, unetr, linear"):
        choose_network(encoder_spec("vit_tiny_8"), input_channels=1, num_classes=2, decoder="swin_unetr")


def test_several_channels_are_mixed_by_a_vit_and_replicated_elsewhere_unless_told_otherwise() -> None:
    vit, swin = encoder_spec("vit_tiny_8"), encoder_spec("swin_tiny")
    assert choose_network(vit, input_channels=2, num_classes=2).channels == "mix"
    assert choose_network(swin, input_channels=2, num_classes=2).channels == "replicate"
    assert choose_network(swin, input_channels=2, num_classes=2, channels="reinit").channels == "reinit"
    pairs = encoder_spec("vit_tiny_8", options={"input_channels": 2})  # weights that read two channels together
    rules = [choose_network(pairs, input_channels=count, num_classes=2) for count in (1, 2, 3)]
    assert [(plan.channels, plan.passes) for plan in rules] == [("replicate", 1)] * 3


def test_a_recipe_decides_decoder_norm_and_freezing_but_not_against_the_flag() -> None:
    swin, recipe = encoder_spec("swin_tiny"), RECIPES["smit_many"]
    plan = choose_network(swin, input_channels=1, num_classes=2, recipe=recipe)
    assert (plan.decoder, plan.norm, plan.frozen) == ("swin_unetr", "batch", False)
    assert choose_network(swin, input_channels=1, num_classes=2, decoder="unet", recipe=recipe).decoder == "unet"


@pytest.mark.parametrize("input_channels", [1, 2])
def test_gradients_reach_a_new_patch_embedding_however_many_channels(input_channels: int) -> None:
    spec = encoder_spec("swin_tiny", (32, 32, 32), options={"depths": [1, 1, 1, 1]})
    for channels in ("replicate", "reinit"):
        plan = choose_network(spec, input_channels=input_channels, num_classes=2, channels=channels)
        network = get_network_from_plans(NETWORK, plan.arch_kwargs(spec), [], input_channels, 2, deep_supervision=False)
        trained = any(parameter.requires_grad for parameter in network.encoder.parameters())
        assert plan.keeps_activations == trained == (channels == "reinit")


def test_nnunet_builds_the_network_from_its_words() -> None:
    spec = encoder_spec("swin_tiny", (64, 32, 32), options={"depths": [1, 1, 1, 1]})
    words = choose_network(spec, input_channels=2, num_classes=3).arch_kwargs(spec)
    network = get_network_from_plans(NETWORK, words, [], 2, 3, deep_supervision=False)
    assert network.encoder.spec.input_channels == 2
    assert network.encoder.spec.depth == 4
    assert network(torch.rand(2, 2, 64, 32, 32)).shape == (2, 3, 64, 32, 32)
