"""The blocks that decoders are made of: normalisations, residual blocks and up-sampling blocks."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnssl.layers.convolution import Conv3x3x3

NORMS = ("instance", "batch", "instance_affine")
SLOPE = 0.01  # LeakyReLU


class InstanceNorm(nn.Module):
    """Instance normalisation, with or without a learnt scale and shift per channel; see `instance_norm`."""

    def __init__(self, channels: int, affine: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, volume: Tensor) -> Tensor:
        """(B, channels, X, Y, Z), same shape."""
        return instance_norm(volume, self.weight, self.bias)


def build_norm(kind: str, channels: int) -> nn.Module:
    """A normalisation of `NORMS`: "instance" has no parameters, the others scale and shift."""
    check_norm(kind)
    return nn.BatchNorm3d(channels) if kind == "batch" else InstanceNorm(channels, affine=kind == "instance_affine")


def check_norm(kind: str) -> None:
    """Raise a ValueError unless the normalisation is known."""
    if kind not in NORMS:
        raise ValueError(f"norm {kind!r} is unknown; known norms: {', '.join(NORMS)}")


class ResidualBlock(nn.Module):
    """conv 3 - norm - LeakyReLU - conv 3 - norm, plus the input (1x1x1 convolution and norm if widths differ)."""

    def __init__(self, inputs: int, outputs: int, norm: str = "instance") -> None:
        super().__init__()
        self.conv1, self.norm1 = Conv3x3x3(inputs, outputs), build_norm(norm, outputs)
        self.conv2, self.norm2 = Conv3x3x3(outputs, outputs), build_norm(norm, outputs)
        if inputs != outputs:
            self.conv3, self.norm3 = nn.Conv3d(inputs, outputs, 1, bias=False), build_norm(norm, outputs)
        self.has_shortcut = inputs != outputs

    def forward(self, volume: Tensor) -> Tensor:
        """(B, inputs, X, Y, Z) -> (B, outputs, X, Y, Z)."""
        residual = self.norm3(self.conv3(volume)) if self.has_shortcut else volume
        hidden = F.leaky_relu(self.norm1(self.conv1(volume)), SLOPE, inplace=True)
        return F.leaky_relu(self.norm2(self.conv2(hidden)).add_(residual), SLOPE, inplace=True)


class UpBlock(nn.Module):
    """Transposed convolution to twice the resolution, then a residual block on it and the skip connection."""

    def __init__(self, inputs: int, outputs: int, norm: str = "instance") -> None:
        super().__init__()
        self.up = up_convolution(inputs, outputs)
        self.block = ResidualBlock(2 * outputs, outputs, norm)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """(B, inputs, X, Y, Z) and a skip (B, outputs, 2X, 2Y, 2Z) -> (B, outputs, 2X, 2Y, 2Z)."""
        up = self.up(coarse)
        return self.block(torch.cat([up, skip.to(up.dtype)], dim=1))


def up_convolution(inputs: int, outputs: int) -> nn.ConvTranspose3d:
    """Twice the resolution: every voxel becomes a block of 2x2x2."""
    return nn.ConvTranspose3d(inputs, outputs, 2, stride=2, bias=False)


def instance_norm(volume: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Zero mean and unit variance per sample and channel, then `weight` and `bias`; zero where there is one voxel.

    Batch normalisation of one sample at a time is the same thing and, unlike PyTorch's own instance normalisation,
    keeps the channels-last layout (CPU, 32 x 96^3, forward + backward: 108 against 377 ms in bf16, 191 against 664 ms
    in float32).
    """
    if volume[0, 0].numel() == 1:
        zeros = torch.zeros_like(volume)
        return zeros if bias is None else zeros + bias.to(volume.dtype)[:, None, None, None]
    samples = [F.batch_norm(sample, None, None, weight, bias, training=True) for sample in volume.split(1)]
    return samples[0] if len(samples) == 1 else torch.cat(samples)
