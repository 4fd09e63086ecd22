"""The linear decoder: what the frozen features say by themselves."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnssl.networks.blocks import build_norm

COARSEST = 4  # maps of a pyramid, or last layers of a plain transformer


class LinearDecoder(nn.Module):
    """Four maps side by side, batch normalisation, one 1x1x1 projection, trilinear up-sampling of the logits.

    3DINO's linear segmentation head on the last four layers of a ViT, whose merge of image channels (1x1x1 convolution
    and GELU, see `Layers`) makes it the paper's "two-layer linear network". A pyramid gives its four coarsest maps,
    resampled to the finest of these.
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
        """`channels` and `strides` of the maps, fine to coarse; the volume itself is not looked at."""
        super().__init__()
        stacked = sum(channels)
        self.norm = build_norm(norm, stacked)
        self.out = nn.Conv3d(stacked, num_classes, 1)

    def forward(self, volume: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Float32 logits (B, num_classes, X, Y, Z) of a volume (B, C, X, Y, Z) and its maps."""
        finest, *coarser = maps
        stacked = torch.cat([finest, *(resized(one, finest.shape[2:]) for one in coarser)], dim=1)
        return resized(self.out(self.norm(stacked)).float(), volume.shape[2:])


def resized(one: Tensor, size: Sequence[int]) -> Tensor:
    """Trilinear resampling of (B, C, ...) to `size`; the same tensor where nothing changes."""
    if tuple(one.shape[2:]) == tuple(size):
        return one
    return F.interpolate(one, size=tuple(size), mode="trilinear", align_corners=False)
