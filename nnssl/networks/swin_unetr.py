"""The decoder of SwinUNETR and SMIT: residual blocks on the image and on a Swin's five maps, then five up-samplings."""

from collections.abc import Sequence

from torch import Tensor, nn

from nnssl.networks.blocks import ResidualBlock, UpBlock

STRIDES = (2, 4, 8, 16, 32)


class SwinUNETRDecoder(nn.Module):
    """Full-resolution logits from an input volume and five maps of strides 2 to 32.

    Hatamizadeh et al. 2022 (arXiv:2201.01266) as MONAI and SMIT build it, with their names: encoder1 (image), encoder2
    to 4 (maps), encoder10 (bottleneck, half of all parameters), decoder5 to 1. The map of stride 16 reaches its skip
    connection as it is. Batch normalisation is SMIT's (paper and default), instance normalisation without parameters
    MONAI's.
    """

    def __init__(
        self,
        input_channels: int,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        norm: str = "batch",
    ) -> None:
        """`channels` and `strides` of the maps, fine to coarse."""
        super().__init__()
        if tuple(strides) != STRIDES:
            raise ValueError(f"SwinUNETR decoder on maps of strides {tuple(strides)}: must be {STRIDES}")
        half, quarter, eighth, sixteenth, bottleneck = channels
        self.encoder1 = ResidualBlock(input_channels, half, norm)
        self.encoder2 = ResidualBlock(half, half, norm)
        self.encoder3 = ResidualBlock(quarter, quarter, norm)
        self.encoder4 = ResidualBlock(eighth, eighth, norm)
        self.encoder10 = ResidualBlock(bottleneck, bottleneck, norm)
        self.decoder5 = UpBlock(bottleneck, sixteenth, norm)
        self.decoder4 = UpBlock(sixteenth, eighth, norm)
        self.decoder3 = UpBlock(eighth, quarter, norm)
        self.decoder2 = UpBlock(quarter, half, norm)
        self.decoder1 = UpBlock(half, half, norm)
        self.out = nn.Conv3d(half, num_classes, 1)

    def forward(self, volume: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Logits (B, num_classes, X, Y, Z) of a volume (B, C, X, Y, Z) and its maps, fine to coarse."""
        half, quarter, eighth, sixteenth, bottleneck = maps
        decoded = self.decoder5(self.encoder10(bottleneck), sixteenth)
        decoded = self.decoder4(decoded, self.encoder4(eighth))
        decoded = self.decoder3(decoded, self.encoder3(quarter))
        decoded = self.decoder2(decoded, self.encoder2(half))
        return self.out(self.decoder1(decoded, self.encoder1(volume)))
