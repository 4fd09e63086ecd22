"""Necks: how several image channels reach an encoder, and which maps leave it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from nnssl.encoders import build_encoder
from nnssl.encoders.base import Encoder
from nnssl.networks.necks import Layers, Pyramid, quarters
from nnssl.networks.segmentor import EncoderSegmentor
from tests.networks.families import FAMILIES, words_of


def _encoder(family: str, **options: Any) -> Any:
    torch.manual_seed(0)
    name, base, _ = FAMILIES[family]
    return build_encoder(name, native_crop=(32, 32, 32), options={**base, **options}).eval()


def _maps(encoder: Encoder, volume: Tensor) -> list[Tensor]:
    return encoder(volume).maps


def test_one_channel_passes_a_pyramid_unchanged() -> None:
    encoder = _encoder("swin")
    neck = Pyramid(encoder, 1)
    volume = torch.rand(1, 1, 32, 64, 32)
    assert not [name for name, _ in neck.named_parameters() if not name.startswith("encoder.")]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(neck(volume), _maps(encoder, volume), strict=True))


def test_several_channels_start_as_their_mean() -> None:
    """Each channel alone through the encoder, then averaged by hand."""
    encoder = _encoder("swin")
    volume = torch.rand(2, 3, 32, 32, 32)
    merged = Pyramid(encoder, 3)(volume)
    with torch.no_grad():
        apart = [_maps(encoder, volume[:, channel : channel + 1]) for channel in range(3)]
    for level, one in enumerate(merged):
        torch.testing.assert_close(one, sum(maps[level] for maps in apart) / 3, rtol=1e-4, atol=1e-5)


def test_a_merge_can_tell_channels_apart() -> None:
    """With the weights of channel 1 only, the maps are those of channel 1."""
    encoder = _encoder("resenc")
    volume = torch.rand(2, 2, 32, 32, 32)
    neck = Pyramid(encoder, 2)
    for merge, width in zip(neck.channel_merge, neck.channels, strict=True):
        merge.weight.data[:, :width] = 0
        merge.weight.data[:, width:] *= 2
    with torch.no_grad():
        for ours, theirs in zip(neck(volume), _maps(encoder, volume[:, 1:]), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_coarsest_maps_can_be_asked_for() -> None:
    neck = Pyramid(_encoder("swin"), 1, coarsest=4)
    assert neck.strides == (4, 8, 16, 32) and neck.channels == (16, 32, 64, 128)
    assert [one.shape[1] for one in neck(torch.rand(1, 1, 32, 32, 32))] == [16, 32, 64, 128]


def test_layers_are_normed_merged_and_activated() -> None:
    """GELU of a matrix times the stacked channels of the normed tokens, by hand."""
    encoder = _encoder("vit_16")
    neck = Layers(encoder, 2, blocks=(1, 3), shared=False)
    volume = torch.rand(1, 2, 16, 32, 16)
    with torch.no_grad():
        ours = neck(volume)
        apart = [encoder.layer_maps(volume[:, channel : channel + 1], (1, 3)) for channel in range(2)]
        for level, merge in enumerate(neck.channel_merge):
            stacked = torch.cat([maps[level] for maps in apart], dim=1)
            product = torch.einsum("oc,bcxyz->boxyz", merge.weight[:, :, 0, 0, 0], stacked)  # type: ignore[index]
            product = product + merge.bias[:, None, None, None]  # type: ignore[index]
            expected = 0.5 * product * (1 + torch.erf(product / 2**0.5))
            torch.testing.assert_close(ours[level], expected, rtol=1e-4, atol=1e-5)


def test_shared_layers_have_one_merge() -> None:
    assert len(Layers(_encoder("primus"), 1, blocks=range(4), shared=True).channel_merge) == 1


@pytest.mark.parametrize(("depth", "blocks"), [(24, [5, 11, 17, 23]), (12, [2, 5, 8, 11]), (6, [0, 2, 3, 5])])
def test_quarters_end_at_the_last_block(depth: int, blocks: list[int]) -> None:
    assert quarters(depth) == blocks


def test_another_number_of_channels_than_the_encoder_reads_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reads 3 channels together, the images have 2; .*channels='replicate'"):
        Pyramid(_encoder("swin", input_channels=3), 2)


@pytest.mark.parametrize("decoder", ["unet", "unetr", "linear"])
@pytest.mark.parametrize("channels", ["replicate", "reinit"])
def test_channels_that_enter_together_need_no_merge(decoder: str, channels: str) -> None:
    network = EncoderSegmentor(3, 2, decoder=decoder, channels=channels, adapter_width=16, **words_of("vit_16"))
    assert network.encoder.spec.input_channels == 3
    merges = [
        one for name, one in network.neck.named_parameters() if "channel_merge" in name and name.endswith("weight")
    ]
    assert merges and all(one.shape[1] == 32 for one in merges)
    assert network(torch.rand(2, 3, 32, 16, 16)).shape == (2, 2, 32, 16, 16)
