"""The 3x3x3 convolution that avoids a fault of PyTorch's CPU library."""

import pytest
import torch
from torch import nn

from nnssl.layers.convolution import Conv3x3x3


def _weight_gradient(layer: nn.Conv3d, volume: torch.Tensor) -> torch.Tensor:
    litter = [torch.full((64, 64, 3, 3, 3), float("nan"), dtype=torch.bfloat16) for _ in range(4)]
    del litter  # freed memory holds NaN: a library that forgets to initialise its result will show it
    layer.zero_grad()
    layer(volume).float().square().sum().backward()
    assert layer.weight.grad is not None
    return layer.weight.grad


@pytest.mark.parametrize("groups", [1, 64])
@pytest.mark.parametrize("cells", [(2, 2, 2), (2, 4, 3), (1, 2, 2), (4, 2, 2)])
def test_bf16_weight_gradients_agree_with_float32(cells: tuple[int, int, int], groups: int) -> None:
    torch.manual_seed(0)
    layer = Conv3x3x3(64, 64, groups=groups)
    volume = torch.randn(2, 64, *cells)
    expected = _weight_gradient(layer, volume).clone()
    for _ in range(5):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            gradient = _weight_gradient(layer, volume)
        assert (gradient - expected).abs().max() < 0.05 * expected.abs().max()


def test_it_is_the_ordinary_convolution() -> None:
    layer = Conv3x3x3(3, 5, bias=True)
    volume = torch.randn(1, 3, 2, 4, 5)
    torch.testing.assert_close(layer(volume), nn.functional.conv3d(volume, layer.weight, layer.bias, padding=1))
