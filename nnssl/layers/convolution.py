"""A 3x3x3 convolution whose bfloat16 weight gradient can be trusted on CPU."""

import torch
from torch import Tensor, nn


class Conv3x3x3(nn.Conv3d):
    """Stride 1, one voxel of zero padding; float32 where bfloat16 on CPU is broken.

    With exactly two cells along X, PyTorch's CPU library (oneDNN, seen in torch 2.15 with AVX512-bf16) returns weight
    gradients made of uninitialised memory: NaN or 1e38, at random. Such maps are tiny, float32 costs nothing there.
    """

    def __init__(self, inputs: int, outputs: int, *, groups: int = 1, bias: bool = False) -> None:
        super().__init__(inputs, outputs, 3, padding=1, groups=groups, bias=bias)

    def forward(self, volume: Tensor) -> Tensor:
        """(B, inputs, X, Y, Z) -> (B, outputs, X, Y, Z)."""
        if volume.shape[2] != 2 or volume.device.type != "cpu":
            return super().forward(volume)
        with torch.autocast("cpu", enabled=False):
            return super().forward(volume.float())
