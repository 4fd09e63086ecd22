"""A first convolution for another number of image channels, so that equal channels give the same result."""

import torch
from torch import Tensor


def fit_channels(kernel: Tensor, input_channels: int) -> Tensor:
    """A kernel (width, c, x, y, z) for `input_channels` channels: the mean over c, repeated, with the sum kept.

    Fed with copies of one image, the convolution gives what the stored one gives with copies of that image; a kernel
    of one channel is shared out in equal parts.
    """
    stored = kernel.shape[1]
    mean = kernel.to(torch.float64).mean(dim=1, keepdim=True)
    shared = mean * (stored / input_channels)
    return shared.expand(-1, input_channels, -1, -1, -1).to(kernel.dtype).contiguous()
