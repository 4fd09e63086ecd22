"""Contract of every encoder family with every decoder: it works, or it is refused with those that do."""

from typing import Any

import pytest
import torch

from nnssl.networks import DECODERS, check_decoder, decoders_for
from nnssl.networks.segmentor import EncoderSegmentor
from tests.networks.families import FAMILIES, spec_of, words_of

SUITED = {
    "vit_16": ["unet", "unetr", "linear"],
    "vit_8": ["unet", "unetr", "linear"],
    "swin": ["unet", "swin_unetr", "linear"],
    "swin_monai": ["unet", "swin_unetr", "linear"],
    "primus": ["unetr", "linear"],
    "resenc": ["unet", "linear"],
}
PAIRS = [(family, decoder) for family, decoders in SUITED.items() for decoder in decoders if family != "swin_monai"]


def _segmentor(family: str, decoder: str, channels: int = 1, **words: Any) -> EncoderSegmentor:
    torch.manual_seed(0)
    return EncoderSegmentor(channels, 3, decoder=decoder, **{**words_of(family), "adapter_width": 16, **words})


def _volume(family: str, channels: int = 1) -> torch.Tensor:
    return torch.rand(2, channels, *FAMILIES[family][2], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_decoders_that_suit_a_family(family: str) -> None:
    assert decoders_for(spec_of(family)) == SUITED[family]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("family", "decoder"), PAIRS)
def test_a_pair_gives_finite_logits_and_trains(family: str, decoder: str, channels: int) -> None:
    network = _segmentor(family, decoder, channels)
    volume = _volume(family, channels)
    logits = network(volume)
    assert logits.shape == (2, 3, *volume.shape[2:]) and logits.dtype == torch.float32 and logits.isfinite().all()
    before = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    trained = {name: one for name, one in network.named_parameters() if one.requires_grad}
    optimiser = torch.optim.AdamW(trained.values(), lr=1e-2)
    logits.square().mean().backward()
    assert [name for name, one in trained.items() if one.grad is None or not one.grad.isfinite().all()] == []
    assert any(one.grad.any() for name, one in trained.items() if name.startswith("decoder."))  # type: ignore[union-attr]
    optimiser.step()
    assert all(torch.equal(value, before[name]) for name, value in network.encoder.state_dict().items())


@pytest.mark.parametrize("norm", ["instance", "batch", "instance_affine"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_takes_every_norm(decoder: str, norm: str) -> None:
    family = next(name for name, decoders in SUITED.items() if decoder in decoders)
    network = _segmentor(family, decoder, norm=norm)
    assert network(_volume(family)).isfinite().all()
    assert any(isinstance(module, torch.nn.BatchNorm3d) for module in network.decoder.modules()) == (norm == "batch")


@pytest.mark.parametrize(("family", "decoder"), [(f, d) for f in FAMILIES for d in DECODERS if d not in SUITED[f]])
def test_a_pair_that_makes_no_sense_names_those_that_do(family: str, decoder: str) -> None:
    with pytest.raises(ValueError, match=f"decoders that suit it: {', '.join(SUITED[family])}"):
        check_decoder(spec_of(family), decoder)
    with pytest.raises(ValueError, match="decoders that suit it"):
        _segmentor(family, decoder)


def test_an_unknown_decoder_lists_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match="decoder 'nonsense' is unknown; known decoders: unet, swin_unetr, unetr, linear"
    ):
        check_decoder(spec_of("swin"), "nonsense")


@pytest.mark.parametrize(("family", "decoder"), [("primus", "linear"), ("swin", "swin_unetr"), ("resenc", "unet")])
def test_a_frozen_encoder_keeps_no_activations(family: str, decoder: str) -> None:
    """Except under the ViT-Adapter, nothing before the encoder is trained: autograd must not look into it."""
    network = _segmentor(family, decoder)
    seen: list[torch.Tensor] = []
    for module in network.encoder.modules():
        module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    network(_volume(family))
    tensors = [one for one in seen if isinstance(one, torch.Tensor)]
    assert tensors and not any(one.requires_grad for one in tensors)
