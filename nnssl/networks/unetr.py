"""The UNETR decoder on a plain transformer: four layers climb to four resolutions by transposed convolutions."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from nnssl.networks.blocks import ResidualBlock, UpBlock, up_convolution

BASE_WIDTH = 32  # at full resolution; doubles with the stride
LAYERS = 4
PATCHES = (8, 16)


class UNETRDecoder(nn.Module):
    """Full-resolution logits from an input volume and the tokens after 1/4, 2/4, 3/4 and all of the blocks.

    Hatamizadeh et al. 2022 (arXiv:2103.10504) with 3DINO's feature size 32: the layers are brought to strides p/8,
    p/4, p/2 and p of the patch p. Deviation: the paper knows patch 16 only; with patch 8 the first layer has full
    resolution and shares its level with the input.
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
        """Four maps of the patch as stride, from the first to the last layer."""
        super().__init__()
        if len(channels) != LAYERS or len(set(strides)) != 1 or strides[0] not in PATCHES:
            raise ValueError(f"UNETR decoder on maps of strides {tuple(strides)}: must be {LAYERS} times 8 or 16")
        widths = [BASE_WIDTH * strides[0] // share for share in (8, 4, 2)]
        steps = (2, 1, 0)
        self.input_encoder = ResidualBlock(input_channels, BASE_WIDTH, norm)
        self.ladders = nn.ModuleList(
            Ladder(*sizes, norm=norm) for sizes in zip(channels[:-1], widths, steps, strict=True)
        )
        self.has_full_map = widths[0] == BASE_WIDTH
        levels = [*([] if self.has_full_map else [BASE_WIDTH]), *widths, channels[-1]]
        self.up_blocks = nn.ModuleList(UpBlock(coarse, fine, norm) for fine, coarse in pairwise(levels))
        self.out = nn.Conv3d(BASE_WIDTH, num_classes, 1)

    def forward(self, volume: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Logits (B, num_classes, X, Y, Z) of a volume (B, C, X, Y, Z) and its four layers."""
        *earlier, decoded = maps
        skips = [ladder(one) for ladder, one in zip(self.ladders, earlier, strict=True)]
        full = self.input_encoder(volume)
        if self.has_full_map:
            skips[0] = skips[0] + full
        else:
            skips.insert(0, full)
        for up in reversed(self.up_blocks):
            decoded = up(decoded, skips.pop())
        return self.out(decoded)


class Ladder(nn.Module):
    """One transposed convolution to `outputs` channels, then `steps` more, each with a residual block."""

    def __init__(self, inputs: int, outputs: int, steps: int, *, norm: str = "instance") -> None:
        super().__init__()
        self.first = up_convolution(inputs, outputs)
        self.steps = nn.ModuleList(
            nn.Sequential(up_convolution(outputs, outputs), ResidualBlock(outputs, outputs, norm)) for _ in range(steps)
        )

    def forward(self, coarse: Tensor) -> Tensor:
        """(B, inputs, X, Y, Z) -> (B, outputs, sX, sY, sZ) with s = 2 ** (1 + steps)."""
        fine = self.first(coarse)
        for step in self.steps:
            fine = step(fine)
        return fine
