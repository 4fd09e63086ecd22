"""Necks: what stands between an encoder and a decoder, and how an encoder of one channel sees several.

Like ViTAdapter, each has `.encoder`, `.channels`, `.strides` and maps a volume in the encoder's intensity range to
feature maps. An encoder without anything to train keeps no activations: autograd has nothing to record there.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnssl.encoders.base import Encoder, TokenEncoder


class Pyramid(nn.Module):
    """The maps of a pyramid encoder; several image channels are merged by a 1x1x1 convolution per map."""

    def __init__(self, encoder: Encoder, input_channels: int, *, coarsest: int | None = None) -> None:
        """`coarsest`: how many maps are wanted, None is all. Channels that the encoder reads together need no merge."""
        super().__init__()
        self.encoder = encoder
        self.first = 0 if coarsest is None else len(encoder.spec.strides) - coarsest
        self.channels, self.strides = encoder.spec.channels[self.first :], encoder.spec.strides[self.first :]
        passes = count_passes(encoder, input_channels)
        self.channel_merge = nn.ModuleList(mean_of_channels(width, passes) for width in self.channels if passes > 1)

    def forward(self, volume: Tensor) -> list[Tensor]:
        """Maps (B, channels[i], ...), fine to coarse, of volumes (B, C, X, Y, Z)."""
        maps = self.encoder(channels_apart(self.encoder, volume)).maps[self.first :]
        if not self.channel_merge:
            return maps
        return [merge(stack_channels(one, len(volume))) for merge, one in zip(self.channel_merge, maps, strict=True)]


class Layers(nn.Module):
    """Maps of a plain transformer after chosen blocks, finally normed, then a 1x1x1 convolution and GELU.

    3DINO merges image channels this way, for one channel too; `shared` uses one convolution for all layers.
    """

    def __init__(self, encoder: TokenEncoder, input_channels: int, *, blocks: Sequence[int], shared: bool) -> None:
        """`blocks` are 0-based and ascend."""
        super().__init__()
        self.encoder, self.blocks = encoder, tuple(blocks)
        dim, patch = encoder.spec.channels[0], encoder.spec.strides[0]
        self.channels, self.strides = (dim,) * len(self.blocks), (patch,) * len(self.blocks)
        stacked = dim * count_passes(encoder, input_channels)
        self.channel_merge = nn.ModuleList(nn.Conv3d(stacked, dim, 1) for _ in range(1 if shared else len(self.blocks)))

    def forward(self, volume: Tensor) -> list[Tensor]:
        """Maps (B, dim, X/p, Y/p, Z/p), first to last layer, of volumes (B, C, X, Y, Z)."""
        maps = self.encoder.layer_maps(channels_apart(self.encoder, volume), self.blocks)
        merges = list(self.channel_merge) * (len(maps) // len(self.channel_merge))
        return [F.gelu(merge(stack_channels(one, len(volume)))) for merge, one in zip(merges, maps, strict=True)]


def quarters(depth: int) -> list[int]:
    """The blocks that end 1/4, 2/4, 3/4 and 4/4 of a transformer (24 blocks: 5, 11, 17, 23)."""
    return [depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]


def count_passes(encoder: Encoder, input_channels: int) -> int:
    """How often the encoder sees a volume: once, or once per channel.

    Raises:
        ValueError: the encoder reads several channels together, but not as many.
    """
    together = encoder.spec.input_channels
    if together not in (1, input_channels):
        raise ValueError(
            f"encoder {encoder.spec.name!r} reads {together} channels together, the images have {input_channels}; "
            f"allowed: an encoder of 1 or {input_channels}; use channels='replicate'"
        )
    return input_channels // together


def channels_apart(encoder: Encoder, volume: Tensor) -> Tensor:
    """(B, C, X, Y, Z) -> (B * passes, channels of the encoder, X, Y, Z), channels of a volume one after another."""
    return volume if encoder.spec.input_channels == volume.shape[1] else volume.flatten(0, 1).unsqueeze(1)


def stack_channels(one: Tensor, batch: int) -> Tensor:
    """(B * passes, width, ...) -> (B, passes * width, ...), channel-major."""
    return one if len(one) == batch else one.unflatten(0, (batch, -1)).flatten(1, 2)


def mean_of_channels(width: int, passes: int) -> nn.Conv3d:
    """A 1x1x1 convolution that starts as the mean over image channels, feature by feature."""
    merge = nn.Conv3d(width * passes, width, 1)
    with torch.no_grad():
        merge.weight.copy_(torch.eye(width).repeat(1, passes)[:, :, None, None, None] / passes)
        nn.init.zeros_(merge.bias)  # type: ignore[arg-type]
    return merge
