"""The UNETR decoder against a network put together from MONAI's UNETR blocks."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from nnssl.networks.segmentor import EncoderSegmentor
from nnssl.networks.unetr import UNETRDecoder

DIM = 24


class MonaiUNETR(nn.Module):
    """MONAI's UNETR without its transformer: from four layers of tokens, as maps, to logits; feature size 32."""

    def __init__(self, input_channels: int, num_classes: int) -> None:
        blocks = pytest.importorskip("monai.networks.blocks")
        super().__init__()
        basic, climb, up = blocks.UnetrBasicBlock, blocks.UnetrPrUpBlock, blocks.UnetrUpBlock
        self.encoder1 = basic(3, input_channels, 32, 3, 1, "instance", res_block=True)
        sizes = zip((64, 128, 256), (2, 1, 0), strict=True)
        ladders = [climb(3, DIM, width, steps, 3, 1, 2, "instance", True, True) for width, steps in sizes]
        self.encoder2, self.encoder3, self.encoder4 = ladders
        self.decoder2 = up(3, 64, 32, 3, 2, "instance", res_block=True)
        self.decoder3 = up(3, 128, 64, 3, 2, "instance", res_block=True)
        self.decoder4 = up(3, 256, 128, 3, 2, "instance", res_block=True)
        self.decoder5 = up(3, DIM, 256, 3, 2, "instance", res_block=True)
        self.out = blocks.UnetOutBlock(3, 32, num_classes)

    def forward(self, volume: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """As in MONAI's UNETR.forward."""
        decoded = self.decoder5(maps[3], self.encoder4(maps[2]))
        decoded = self.decoder4(decoded, self.encoder3(maps[1]))
        decoded = self.decoder3(decoded, self.encoder2(maps[0]))
        return self.out(self.decoder2(decoded, self.encoder1(volume)))


def test_logits_agree_with_monais_blocks() -> None:
    torch.manual_seed(0)
    theirs, ours = MonaiUNETR(2, 3), UNETRDecoder(2, (DIM,) * 4, (16,) * 4, 3)
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    assert all(mine.shape == other.shape for mine, other in pairs)
    for mine, other in pairs:
        mine.data.copy_(other.data)
    volume, maps = torch.randn(1, 2, 16, 32, 16), [torch.randn(1, DIM, 1, 2, 1) for _ in range(4)]
    with torch.no_grad():
        torch.testing.assert_close(ours(volume, maps), theirs(volume, maps), rtol=1e-4, atol=1e-4)


def test_patch_8_reaches_full_resolution() -> None:
    decoder = UNETRDecoder(1, (DIM,) * 4, (8,) * 4, 3)
    maps = [torch.randn(1, DIM, 2, 1, 3) for _ in range(4)]
    assert decoder(torch.randn(1, 1, 16, 8, 24), maps).shape == (1, 3, 16, 8, 24)
    assert len(decoder.up_blocks) == 3


def test_on_vit_large_it_has_the_published_size() -> None:
    with torch.device("meta"):
        network = EncoderSegmentor(1, 14, "vit_large_16", "unetr")
    total, encoder = (sum(p.numel() for p in part.parameters()) for part in (network, network.encoder))
    assert round((total - encoder) / 1e6, 2) == 19.09


def test_it_reads_the_ends_of_the_four_quarters() -> None:
    with torch.device("meta"):
        network = EncoderSegmentor(1, 2, "vit_large_16", "unetr")
    assert network.neck.blocks == (5, 11, 17, 23)


def test_other_patches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"strides \(4, 4, 4, 4\): must be 4 times 8 or 16"):
        UNETRDecoder(1, (DIM,) * 4, (4,) * 4, 3)
