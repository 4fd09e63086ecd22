"""The decoder's arithmetic against MONAI's UNETR blocks, and its shapes."""

import pytest
import torch
from torch import nn

from nnssl.networks import DECODERS
from nnssl.networks.unet import ResidualBlock, UNetDecoder, UpBlock, instance_norm

blocks = pytest.importorskip("monai.networks.blocks")


def _copy_in_order(source: nn.Module, target: nn.Module) -> None:
    """Copy parameters by shape and order (the names differ, the order of construction does not matter here)."""
    theirs = list(target.parameters())
    for parameter in source.parameters():
        match = next(index for index, other in enumerate(theirs) if other.shape == parameter.shape)
        theirs.pop(match).data.copy_(parameter.data)
    assert not theirs


@pytest.mark.parametrize(("inputs", "outputs"), [(5, 8), (8, 8)])
def test_residual_block_agrees_with_monai(inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    ours = ResidualBlock(inputs, outputs)
    theirs = blocks.UnetrBasicBlock(3, inputs, outputs, kernel_size=3, stride=1, norm_name="instance", res_block=True)
    _copy_in_order(ours, theirs)
    volume = torch.randn(2, inputs, 4, 6, 5)
    torch.testing.assert_close(ours(volume), theirs(volume), rtol=1e-4, atol=1e-4)


def test_up_block_agrees_with_monai() -> None:
    torch.manual_seed(0)
    ours = UpBlock(8, 4)
    theirs = blocks.UnetrUpBlock(3, 8, 4, kernel_size=3, upsample_kernel_size=2, norm_name="instance", res_block=True)
    _copy_in_order(ours, theirs)
    coarse, skip = torch.randn(2, 8, 2, 3, 2), torch.randn(2, 4, 4, 6, 4)
    torch.testing.assert_close(ours(coarse, skip), theirs(coarse, skip), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_instance_norm_agrees_with_pytorch_and_keeps_the_layout(layout: torch.memory_format) -> None:
    volume = torch.randn(3, 4, 5, 6, 7, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
    normed = instance_norm(volume)
    torch.testing.assert_close(normed, nn.functional.instance_norm(volume), rtol=1e-4, atol=1e-5)
    assert normed.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("strides", [(1, 2, 4, 8), (2, 4, 8, 16)])
def test_every_decoder_returns_full_resolution(name: str, strides: tuple[int, ...]) -> None:
    decoder = DECODERS[name](2, [6, 6, 6, 6], strides, 3)
    crop = (16, 32, 48)
    maps = [torch.randn(1, 6, *(side // stride for side in crop)) for stride in strides]
    assert decoder(torch.randn(1, 2, *crop), maps).shape == (1, 3, *crop)


def test_the_input_reaches_the_logits_of_a_full_resolution_pyramid() -> None:
    torch.manual_seed(0)
    decoder = UNetDecoder(1, [6, 6], (1, 2), 3)
    maps = [torch.randn(1, 6, 8, 8, 8), torch.randn(1, 6, 4, 4, 4)]
    volume = torch.randn(1, 1, 8, 8, 8)
    assert not torch.allclose(decoder(volume, maps), decoder(volume.roll(3, 2), maps), atol=1e-3)
    assert len(decoder.up_blocks) == 1


def test_strides_that_do_not_double_are_refused() -> None:
    with pytest.raises(ValueError, match=r"strides \(4, 8\): must start at 1 or 2 and double"):
        UNetDecoder(1, [6, 6], (4, 8), 3)
