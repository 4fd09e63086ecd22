"""From a coarse feature map back to voxels: a linear map per cell (depth to space), or convolutions that upsample."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnssl.layers.convolution import Conv3x3x3

LEAK = 0.01  # of the LeakyReLU


class DepthToSpaceHead(nn.Module):
    """The "lightweight decoder" of SimMIM and SMIT: every cell of the map predicts its own stride^3 voxels.

    A 1x1x1 convolution, then `depth_to_space`; the same as one transposed convolution whose kernel is its stride, which
    is the reconstruction head of the SwinUNETR paper.

    Args:
        channels: of the map.
        stride: voxels per cell and axis; 32 at a Swin's bottleneck.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv3d(channels, stride**3, 1)

    def forward(self, feature_map: Tensor) -> Tensor:
        """(B, channels, X, Y, Z) -> (B, 1, stride * X, stride * Y, stride * Z)."""
        return depth_to_space(self.conv(feature_map), self.stride)


class UpsamplingHead(nn.Module):
    """The conv decoder of the SwinUNETR code ("vae"): per doubling a 3x3x3 convolution, instance norm, leaky ReLU.

    Channels are halved at each doubling but the last (768 -> 384 -> 192 -> 96 -> 48 -> 48 at stride 32), then a 1x1x1
    convolution gives the volume. The stride is a power of two.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        doublings = stride.bit_length() - 1
        if 2**doublings != stride:
            raise ValueError(f"decoder 'convolutions': the map's stride {stride} must be a power of two; use 'linear'")
        widths = [channels // 2**i for i in range(doublings)]
        widths.append(widths[-1])
        self.convs = nn.ModuleList(Conv3x3x3(*pair, bias=True) for pair in pairwise(widths))
        self.out = nn.Conv3d(widths[-1], 1, 1)

    def forward(self, feature_map: Tensor) -> Tensor:
        """(B, channels, X, Y, Z) -> (B, 1, stride * X, stride * Y, stride * Z)."""
        for conv in self.convs:
            maps = conv(feature_map)
            normed = F.layer_norm(maps, maps.shape[2:])  # = instance norm, but accepts a map of one cell
            feature_map = F.interpolate(
                F.leaky_relu(normed, LEAK), scale_factor=2, mode="trilinear", align_corners=False
            )
        return self.out(feature_map)


DECODERS: dict[str, type[nn.Module]] = {"linear": DepthToSpaceHead, "convolutions": UpsamplingHead}


def reconstruction_head(decoder: str, channels: int, stride: int) -> nn.Module:
    """A freshly initialised head by its name in `DECODERS`."""
    return DECODERS[decoder](channels, stride)


def depth_to_space(cells: Tensor, stride: int) -> Tensor:
    """(B, stride^3, X, Y, Z) -> (B, 1, stride * X, ...): channel (i, j, k), k fastest, of a cell is its voxel there."""
    x, y, z = cells.shape[2:]
    voxels = cells.unflatten(1, (stride, stride, stride)).permute(0, 4, 1, 5, 2, 6, 3)
    return torch.reshape(voxels, (len(cells), 1, x * stride, y * stride, z * stride))
