"""What of an encoder is trained: nothing, its last blocks, a new patch embedding, low-rank additions; and how fast."""

from typing import Any

import pytest
import torch

from nnssl.networks.encoder_layers import input_layer, parameter_layers
from nnssl.networks.segmentor import EncoderSegmentor, load_encoder_weights
from nnssl.networks.tuning import trainable_groups
from tests.networks.families import FAMILIES, spec_of, words_of

DECODER = {
    "vit_16": "linear",
    "vit_8": "unetr",
    "swin": "swin_unetr",
    "swin_monai": "linear",
    "primus": "unetr",
    "resenc": "unet",
}
INPUT_LAYERS = {
    "vit_16": "patch_embed.proj",
    "vit_8": "patch_embed.proj",
    "swin": "patch_embed.proj",
    "swin_monai": "patch_embed.proj",
    "primus": "down_projection.proj",
    "resenc": "stem.convs.0.conv",
}


def _segmentor(family: str, **words: Any) -> EncoderSegmentor:
    torch.manual_seed(0)
    channels = words.pop("input_channels", 1)
    return EncoderSegmentor(channels, 3, **{**words_of(family), "decoder": DECODER[family], **words})


def _trained(network: EncoderSegmentor) -> set[str]:
    return {name for name, one in network.encoder.named_parameters() if one.requires_grad}


def _moved_by_a_step(network: EncoderSegmentor, family: str) -> set[str]:
    """Names of the encoder's tensors that a training step changes."""
    before = {name: one.clone() for name, one in network.encoder.state_dict().items()}
    trained = [one for one in network.parameters() if one.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-2)
    channels = network.decoder.input_encoder.conv1.in_channels if hasattr(network.decoder, "input_encoder") else 1
    network(torch.rand(2, channels, *FAMILIES[family][2])).square().mean().backward()
    optimiser.step()
    return {name for name, one in network.encoder.state_dict().items() if not torch.equal(one, before[name])}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_blocks_are_as_many_as_the_spec_says(family: str) -> None:
    network = _segmentor(family)
    assert len(network.encoder.blocks_in_order) == spec_of(family).depth
    assert input_layer(network.encoder) == INPUT_LAYERS[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_block_and_what_follows_it_are_trained(family: str) -> None:
    network = _segmentor(family, unfreeze_last=1)
    last = {id(one) for one in network.encoder.blocks_in_order[-1].parameters()}
    trained = {name: id(one) for name, one in network.encoder.named_parameters() if one.requires_grad}
    assert last <= set(trained.values())
    after = {name for name, one in trained.items() if one not in last}
    expected = {
        "vit": {"norm.weight", "norm.bias"},
        "primus": {"eva.norm.weight", "eva.norm.bias"},
        "resenc": set(),
        "swin": {
            "layers.3.downsample.reduction.weight",
            "layers.3.downsample.norm.weight",
            "layers.3.downsample.norm.bias",
        },
    }[spec_of(family).family]
    assert after == expected | ({"norm3.weight", "norm3.bias"} if family == "swin" else set())
    moved = _moved_by_a_step(network, family)
    assert moved <= set(trained) and {name for name in trained if name.endswith("weight")} <= moved


def test_unfreezing_a_swin_counts_blocks_over_its_stages() -> None:
    """Stages of 2 blocks: the last three are the second of stage 2 with its merge and norm, and all of stage 3."""
    trained = _trained(_segmentor("swin", unfreeze_last=3))
    assert {name.split(".attn")[0] for name in trained if "attn.qkv" in name} == {
        "layers.2.blocks.1",
        "layers.3.blocks.0",
        "layers.3.blocks.1",
    }
    assert {"norm2.weight", "norm3.weight", "layers.2.downsample.reduction.weight"} <= trained
    assert not {"norm0.weight", "norm1.weight", "layers.1.downsample.reduction.weight"} & trained


def test_unfreezing_all_blocks_leaves_the_patch_embedding_frozen() -> None:
    frozen = {
        name for name, one in _segmentor("vit_16", unfreeze_last=4).encoder.named_parameters() if not one.requires_grad
    }
    assert frozen == {"cls_token", "pos_embed", "mask_token", "patch_embed.proj.weight", "patch_embed.proj.bias"}


def test_only_the_unfrozen_blocks_are_in_training_mode() -> None:
    network = _segmentor("vit_16", unfreeze_last=1).train()
    assert [block.training for block in network.encoder.blocks_in_order] == [False, False, False, True]
    assert not any(block.training for block in network.eval().encoder.blocks_in_order)


@pytest.mark.parametrize("family", FAMILIES)
def test_reinit_trains_the_patch_embedding_and_nothing_else(family: str) -> None:
    network = _segmentor(family, channels="reinit", input_channels=2)
    names = {name for name, _ in network.encoder.named_parameters() if name.startswith(f"{INPUT_LAYERS[family]}.")}
    assert _trained(network) == names
    network(torch.rand(2, 2, *FAMILIES[family][2])).square().mean().backward()
    assert all(network.encoder.get_parameter(name).grad.any() for name in names if name.endswith("weight"))  # type: ignore[union-attr]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "resenc"])
def test_low_rank_additions_change_nothing_at_first_and_are_all_that_is_trained(family: str) -> None:
    plain, adapted = _segmentor(family), _segmentor(family, lora_rank=2)
    load_encoder_weights(adapted, plain.encoder.state_dict())
    volume = torch.rand(1, 1, *FAMILIES[family][2])
    with torch.no_grad():
        ours, theirs = adapted.neck.encoder.eval()(volume), plain.neck.encoder.eval()(volume)
    assert all(torch.equal(one, other) for one, other in zip(ours.maps, theirs.maps, strict=True))
    trained = _trained(adapted)
    assert trained and all(name.endswith(("low_rank_a", "low_rank_b")) for name in trained)
    assert adapted.encoder.state_dict().keys() - trained == plain.encoder.state_dict().keys()
    moved = _moved_by_a_step(adapted, family)
    assert moved <= trained and {name for name in trained if name.endswith("low_rank_b")} <= moved


def test_low_rank_additions_need_attention() -> None:
    with pytest.raises(ValueError, match="'resenc_l': it has no attention; use unfreeze_last"):
        _segmentor("resenc", lora_rank=2)


def test_loading_is_strict() -> None:
    network = _segmentor("vit_16", lora_rank=2)
    weights = {name: one for name, one in _segmentor("vit_16").encoder.state_dict().items() if name != "norm.bias"}
    with pytest.raises(ValueError, match=r"loading weights into encoder 'vit_tiny_16'.*norm\.bias") as caught:
        load_encoder_weights(network, weights)
    assert "\n" not in str(caught.value)


def test_a_new_patch_embedding_is_not_loaded() -> None:
    network = _segmentor("swin", channels="reinit", input_channels=2)
    own = network.encoder.get_parameter("patch_embed.proj.weight").clone()
    torch.manual_seed(1)
    weights = EncoderSegmentor(1, 3, **{**words_of("swin"), "decoder": "linear"}).encoder.state_dict()
    load_encoder_weights(network, weights)
    for name, one in network.encoder.state_dict().items():
        if name.startswith("patch_embed.proj."):
            assert one.shape == own.shape if name.endswith("weight") else True
        else:
            assert torch.equal(one, weights[name]), name
    assert torch.equal(network.encoder.get_parameter("patch_embed.proj.weight"), own)


def test_more_blocks_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="last 5 blocks of 'vit_tiny_16': it has 4; use frozen=False"):
        _segmentor("vit_16", unfreeze_last=5)


@pytest.mark.parametrize("words", [{"unfreeze_last": 1}, {"lora_rank": 2}])
def test_full_training_leaves_nothing_to_unfreeze(words: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="frozen=False: all of the encoder is trained already"):
        _segmentor("vit_16", frozen=False, **words)


def test_layer_wise_decay_by_hand() -> None:
    """4 blocks, decay 1/2, rate 1: block i at (1/2) ** (4 - i), patch embedding at 1/32, decoder at 1."""
    network = _segmentor("vit_16", frozen=False)
    rate = {id(one): group["lr"] for group in trainable_groups(network, 1.0, 0.5) for one in group["params"]}
    named = dict(network.named_parameters())
    assert rate[id(named["decoder.out.weight"])] == rate[id(named["neck.channel_merge.0.weight"])] == 1
    assert [rate[id(named[f"neck.encoder.blocks.{i}.attn.qkv.weight"])] for i in range(4)] == [
        1 / 16,
        1 / 8,
        1 / 4,
        1 / 2,
    ]
    assert (
        rate[id(named["neck.encoder.patch_embed.proj.weight"])] == rate[id(named["neck.encoder.pos_embed"])] == 1 / 32
    )
    assert rate[id(named["neck.encoder.norm.weight"])] == 1 / 2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("decay", [0.75, 1.0])
def test_groups_hold_every_trained_parameter_once(family: str, decay: float) -> None:
    network = _segmentor(family, frozen=False)
    groups = trainable_groups(network, 2e-4, decay)
    held = [id(one) for group in groups for one in group["params"]]
    assert sorted(held) == sorted(id(one) for one in network.parameters() if one.requires_grad)
    assert len(groups) == (1 if decay == 1 else 2 + spec_of(family).depth)
    assert all(group["lr"] == 2e-4 * group["lr_multiplier"] for group in groups)
    torch.optim.AdamW(groups)


def test_what_is_new_in_an_encoder_learns_at_the_full_rate() -> None:
    for words in ({"lora_rank": 2}, {"channels": "reinit"}):
        (group,) = trainable_groups(_segmentor("vit_16", **words), 1e-3, 0.5)
        assert group["lr"] == 1e-3


@pytest.mark.parametrize("decay", [0.0, 1.5])
def test_a_decay_outside_its_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="must be above 0 and at most 1"):
        trainable_groups(_segmentor("vit_16"), 1e-3, decay)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_start_before_the_first_block_and_end_with_the_last(family: str) -> None:
    layers = parameter_layers(_segmentor(family).encoder)
    assert set(layers.values()) == set(range(spec_of(family).depth + 1))
