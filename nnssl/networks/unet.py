"""The U-Net decoder of 3DINO: residual blocks on a feature pyramid and on the input itself."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnssl.layers.convolution import Conv3x3x3

BASE_WIDTH = 32  # doubles per pyramid level: 32, 64, 128, 256
SLOPE = 0.01  # LeakyReLU


class UNetDecoder(nn.Module):
    """Full-resolution logits from an input volume and its feature maps.

    The arithmetic of MONAI's UNETR blocks (Hatamizadeh et al. 2022, arXiv:2103.10504): instance normalisation without
    parameters, transposed convolutions, residual blocks. One level per map, and one more at full resolution where
    the finest map is coarser than the input; a map that has full resolution shares its level with the input.
    """

    def __init__(self, input_channels: int, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        """`channels` and `strides` of the maps, fine to coarse; strides start at 1 or 2 and double."""
        super().__init__()
        _check_strides(strides)
        widths = [BASE_WIDTH * 2**level for level in range(len(channels))]
        self.input_encoder = ResidualBlock(input_channels, BASE_WIDTH)
        self.map_encoders = nn.ModuleList(ResidualBlock(*pair) for pair in zip(channels, widths, strict=True))
        self.has_full_map = strides[0] == 1
        outputs = widths[:-1] if self.has_full_map else [BASE_WIDTH, *widths[:-1]]
        inputs = widths[1:] if self.has_full_map else widths
        self.up_blocks = nn.ModuleList(UpBlock(*pair) for pair in zip(inputs, outputs, strict=True))
        self.out = nn.Conv3d(BASE_WIDTH, num_classes, 1)

    def forward(self, volume: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Logits (B, num_classes, X, Y, Z) of a volume (B, C, X, Y, Z) and its maps, fine to coarse."""
        skips = [encoder(one) for encoder, one in zip(self.map_encoders, maps, strict=True)]
        full = self.input_encoder(volume)
        if self.has_full_map:
            skips[0] = skips[0] + full
        else:
            skips.insert(0, full)
        decoded = skips.pop()
        for up in reversed(self.up_blocks):
            decoded = up(decoded, skips.pop())
        return self.out(decoded)


class ResidualBlock(nn.Module):
    """conv 3 - norm - LeakyReLU - conv 3 - norm, plus the input (1x1x1 convolution and norm if widths differ)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = Conv3x3x3(inputs, outputs)
        self.conv2 = Conv3x3x3(outputs, outputs)
        self.shortcut = nn.Conv3d(inputs, outputs, 1, bias=False) if inputs != outputs else None

    def forward(self, volume: Tensor) -> Tensor:
        """(B, inputs, X, Y, Z) -> (B, outputs, X, Y, Z)."""
        residual = volume if self.shortcut is None else instance_norm(self.shortcut(volume))
        hidden = F.leaky_relu(instance_norm(self.conv1(volume)), SLOPE, inplace=True)
        return F.leaky_relu(instance_norm(self.conv2(hidden)) + residual, SLOPE, inplace=True)


class UpBlock(nn.Module):
    """Transposed convolution to twice the resolution, then a residual block on it and the skip connection."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(inputs, outputs, 2, stride=2, bias=False)
        self.block = ResidualBlock(2 * outputs, outputs)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """(B, inputs, X, Y, Z) and a skip (B, outputs, 2X, 2Y, 2Z) -> (B, outputs, 2X, 2Y, 2Z)."""
        return self.block(torch.cat([self.up(coarse), skip], dim=1))


def instance_norm(volume: Tensor) -> Tensor:
    """Zero mean and unit variance per sample and channel, without parameters; zero where there is one voxel.

    Batch normalisation of one sample at a time is the same thing and, unlike PyTorch's own instance normalisation,
    keeps the channels-last layout (CPU, 32 x 96^3, forward + backward: 108 against 377 ms in bf16, 191 against 664 ms
    in float32).
    """
    if volume[0, 0].numel() == 1:
        return torch.zeros_like(volume)
    samples = [F.batch_norm(sample, None, None, training=True) for sample in volume.split(1)]
    return samples[0] if len(samples) == 1 else torch.cat(samples)


def _check_strides(strides: Sequence[int]) -> None:
    if strides[0] not in (1, 2) or any(b != 2 * a for a, b in pairwise(strides)):
        raise ValueError(f"U-Net decoder on maps of strides {tuple(strides)}: must start at 1 or 2 and double")
