"""The U-Net decoder of 3DINO: residual blocks on a feature pyramid and on the input itself."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from nnssl.networks.blocks import ResidualBlock, UpBlock
from nnssl.networks.recompute import recomputed

BASE_WIDTH, MAX_WIDTH = 32, 320  # doubles per pyramid level; 3DINO's four end at 256, nnU-Net never exceeds 320


class UNetDecoder(nn.Module):
    """Full-resolution logits from an input volume and its feature maps.

    The arithmetic of MONAI's UNETR blocks (Hatamizadeh et al. 2022, arXiv:2103.10504): transposed convolutions and
    residual blocks. One level per map, and one more at full resolution where the finest map is coarser than the
    input; a map that has full resolution shares its level with the input.
    """

    def __init__(
        self,
        input_channels: int,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        norm: str = "instance",
    ) -> None:
        """`channels` and `strides` of the maps, fine to coarse; strides start at 1 or 2 and double."""
        super().__init__()
        if not doubling(strides):
            raise ValueError(f"U-Net decoder on maps of strides {tuple(strides)}: must start at 1 or 2 and double")
        widths = [min(BASE_WIDTH * 2**level, MAX_WIDTH) for level in range(len(channels))]
        self.input_encoder = ResidualBlock(input_channels, BASE_WIDTH, norm)
        self.map_encoders = nn.ModuleList(ResidualBlock(*pair, norm) for pair in zip(channels, widths, strict=True))
        self.has_full_map = strides[0] == 1
        levels = widths if self.has_full_map else [BASE_WIDTH, *widths]
        self.up_blocks = nn.ModuleList(UpBlock(coarse, fine, norm) for fine, coarse in pairwise(levels))
        self.out = nn.Conv3d(BASE_WIDTH, num_classes, 1)

    def forward(self, volume: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Logits (B, num_classes, X, Y, Z) of a volume (B, C, X, Y, Z) and its maps, fine to coarse."""
        skips = [encoder(one) for encoder, one in zip(self.map_encoders, maps, strict=True)]
        full = recomputed(self.input_encoder, volume)  # cheap and large: few channels at full resolution
        if self.has_full_map:
            skips[0] = skips[0] + full
        else:
            skips.insert(0, full)
        decoded = skips.pop()
        for up in reversed(self.up_blocks):
            decoded = up(decoded, skips.pop())
        return self.out(decoded)


def doubling(strides: Sequence[int]) -> bool:
    """Whether strides start at 1 or 2 and double."""
    return strides[0] in (1, 2) and all(b == 2 * a for a, b in pairwise(strides))
