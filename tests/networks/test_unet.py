"""The U-Net decoder: its shapes and what reaches its logits (its blocks: test_blocks)."""

import pytest
import torch

from nnssl.networks.unet import UNetDecoder


@pytest.mark.parametrize("strides", [(1, 2, 4, 8), (2, 4, 8, 16), (2, 4, 8, 16, 32), (1, 2, 4, 8, 16, 32)])
def test_logits_have_full_resolution(strides: tuple[int, ...]) -> None:
    decoder = UNetDecoder(2, [6] * len(strides), strides, 3)
    crop = (32, 64, 32) if strides[-1] == 32 else (16, 32, 48)
    maps = [torch.randn(1, 6, *(side // stride for side in crop)) for stride in strides]
    assert decoder(torch.randn(1, 2, *crop), maps).shape == (1, 3, *crop)


def test_widths_double_up_to_nnunets_largest() -> None:
    decoder = UNetDecoder(1, [8] * 6, (1, 2, 4, 8, 16, 32), 2)
    assert [block.conv1.out_channels for block in decoder.map_encoders] == [32, 64, 128, 256, 320, 320]  # type: ignore[union-attr]


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
