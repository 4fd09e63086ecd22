"""Reconstruction heads against the reference's numbers and against PyTorch's own layers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nnssl.layers.reconstruction import DepthToSpaceHead, UpsamplingHead, depth_to_space, reconstruction_head
from tests.rules import golden_error, normal, rule_tensor

GRID, STRIDE, CHANNELS = (2, 3, 2), 4, 10


def test_depth_to_space_head_gives_the_reference_s_volume(golden: Callable[[str], Any]) -> None:
    stored = golden("g07_smit_losses.npz")
    head = DepthToSpaceHead(CHANNELS, STRIDE)
    with torch.no_grad():
        head.conv.weight.copy_(torch.from_numpy(rule_tensor("decoder1.weight", (STRIDE**3, CHANNELS, 1, 1, 1))))
        head.conv.bias.copy_(torch.from_numpy(rule_tensor("decoder1.bias", (STRIDE**3,))))
        tokens = torch.from_numpy(normal("bottleneck_tokens", (2, 12, CHANNELS)))
        volume = head(tokens.transpose(1, 2).unflatten(2, GRID))
    assert golden_error(stored, "d2s.output", volume.numpy()) < 1e-5


def test_depth_to_space_moves_every_channel_where_the_reference_does(golden: Callable[[str], Any]) -> None:
    stored = golden("g07_smit_losses.npz")
    channels = torch.arange(STRIDE**3 * 12).view(1, STRIDE**3, *GRID)
    np.testing.assert_array_equal(depth_to_space(channels, STRIDE)[0], stored["d2s.index_volume"])


def test_the_linear_head_is_a_transposed_convolution_with_kernel_equal_to_stride() -> None:
    head, peer = DepthToSpaceHead(3, 2), nn.ConvTranspose3d(3, 1, 2, 2)
    with torch.no_grad():
        peer.weight.copy_(head.conv.weight.view(2, 2, 2, 3).permute(3, 0, 1, 2)[:, None])
        assert head.conv.bias is not None and peer.bias is not None
        head.conv.bias.fill_(0.3)
        peer.bias.fill_(0.3)
        cells = torch.from_numpy(normal("cells", (2, 3, 2, 3, 4)))
        torch.testing.assert_close(head(cells), peer(cells))


def test_the_convolutional_head_is_the_reference_s_stack_of_layers() -> None:
    head = UpsamplingHead(16, 8)
    layers: list[nn.Module] = []
    for inputs, outputs in ((16, 8), (8, 4), (4, 4)):
        layers += [
            nn.Conv3d(inputs, outputs, 3, padding=1),
            nn.InstanceNorm3d(outputs),
            nn.LeakyReLU(0.01),
            nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False),
        ]
    peer = nn.Sequential(*layers, nn.Conv3d(4, 1, 1))
    with torch.no_grad():
        for mine, other in zip(head.parameters(), peer.parameters(), strict=True):
            other.copy_(mine)
        cells = torch.from_numpy(normal("cells", (2, 16, 2, 3, 2)))
        torch.testing.assert_close(head(cells), peer(cells), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("decoder", ["linear", "convolutions"])
@pytest.mark.parametrize("stride", [2, 8, 16])
def test_any_stride_gives_back_the_volume(decoder: str, stride: int) -> None:
    volume = reconstruction_head(decoder, 16, stride)(torch.ones(1, 16, 1, 2, 1))
    assert volume.shape == (1, 1, stride, 2 * stride, stride)


def test_a_stride_that_is_no_power_of_two_needs_the_linear_head() -> None:
    with pytest.raises(ValueError, match="stride 12 must be a power of two; use 'linear'"):
        reconstruction_head("convolutions", 16, 12)
