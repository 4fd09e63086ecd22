"""The adapter's convolutional view of the input: one fine map and three coarser ones."""

import torch
from torch import Tensor, nn


class SpatialPrior(nn.Module):
    """Maps at strides p/8, p/4, p/2 and p of the patch p, all of the adapter's width.

    Reference: strided 3x3x3 convolutions with batch normalisation and ReLU, no pooling (3DINO; the 2D ViT-Adapter
    pools). Deviation: only patch 16 exists there; for patch 8 the first convolution keeps the full resolution.
    """

    def __init__(self, input_channels: int, width: int, *, first_stride: int = 2, stem_width: int = 32) -> None:
        super().__init__()
        stem = stem_width
        self.stem = nn.Sequential(
            *_convolution(input_channels, stem, first_stride), *_convolution(stem, stem), *_convolution(stem, stem)
        )
        self.conv2 = nn.Sequential(*_convolution(stem, 2 * stem, 2))
        self.conv3 = nn.Sequential(*_convolution(2 * stem, 4 * stem, 2))
        self.conv4 = nn.Sequential(*_convolution(4 * stem, 4 * stem, 2))
        self.fc1, self.fc2 = nn.Conv3d(stem, width, 1), nn.Conv3d(2 * stem, width, 1)
        self.fc3, self.fc4 = nn.Conv3d(4 * stem, width, 1), nn.Conv3d(4 * stem, width, 1)

    def forward(self, volume: Tensor) -> list[Tensor]:
        """(B, C, X, Y, Z) -> four maps (B, width, ...), fine to coarse."""
        first = self.stem(volume)
        second = self.conv2(first)
        third = self.conv3(second)
        fourth = self.conv4(third)
        return [self.fc1(first), self.fc2(second), self.fc3(third), self.fc4(fourth)]


def initialise_convolutions(module: nn.Module) -> None:
    """Normal weights of variance 2 / fan-out, zero bias, for every 3D (transposed) convolution inside `module`."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
            fan_out = layer.out_channels * int(torch.Size(layer.kernel_size).numel()) // layer.groups
            nn.init.normal_(layer.weight, 0.0, (2.0 / fan_out) ** 0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return (
        nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm3d(outputs),
        nn.ReLU(inplace=True),
    )
