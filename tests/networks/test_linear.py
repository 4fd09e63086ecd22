"""The linear decoder against its formula."""

import numpy as np
import torch

from nnssl.networks.linear import LinearDecoder
from nnssl.networks.segmentor import EncoderSegmentor


def test_one_resolution_is_normalised_projected_and_upsampled() -> None:
    """Stride 1, so that nothing is resampled: (x - mean) / std per channel over batch and space, then a matrix."""
    torch.manual_seed(0)
    decoder = LinearDecoder(1, (3, 2), (1, 1), 4)
    maps = [torch.randn(2, 3, 4, 3, 2), torch.randn(2, 2, 4, 3, 2)]
    logits = decoder(torch.zeros(2, 1, 4, 3, 2), maps)
    stacked = np.concatenate([one.numpy() for one in maps], axis=1)
    normed = (stacked - stacked.mean((0, 2, 3, 4), keepdims=True)) / stacked.std((0, 2, 3, 4), keepdims=True)
    matrix, shift = (one.detach().numpy() for one in (decoder.out.weight[:, :, 0, 0, 0], decoder.out.bias))
    expected = np.einsum("kc,bcxyz->bkxyz", matrix, normed) + shift[:, None, None, None]
    np.testing.assert_allclose(logits.detach().numpy(), expected, atol=1e-4)


def test_coarser_maps_are_resampled_to_the_finest() -> None:
    """A ramp of 4 cells becomes 8: cell i reads at (i + 0.5) / 2 - 0.5, clamped."""
    decoder = LinearDecoder(1, (1, 1), (4, 8), 1, norm="instance").eval()
    decoder.norm = torch.nn.Identity()
    torch.nn.init.zeros_(decoder.out.bias)
    decoder.out.weight.data = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1, 1)
    ramp = torch.arange(4.0).view(1, 1, 4, 1, 1)
    logits = decoder(torch.zeros(1, 1, 8, 2, 2), [torch.zeros(1, 1, 8, 2, 2), ramp])
    expected = np.interp((np.arange(8) + 0.5) / 2 - 0.5, np.arange(4), np.arange(4))
    np.testing.assert_allclose(logits[0, 0, :, 0, 0].detach().numpy(), expected, atol=1e-6)


def test_on_vit_large_it_is_a_two_layer_network() -> None:
    """1024 x 1024 merge, 4096 scales and shifts, 4096 x 14 projection."""
    with torch.device("meta"):
        network = EncoderSegmentor(1, 14, "vit_large_16", "linear")
    added = sum(p.numel() for p in network.parameters()) - sum(p.numel() for p in network.encoder.parameters())
    assert added == (1024 * 1024 + 1024) + 2 * 4096 + (4096 * 14 + 14)
    assert network.neck.blocks == (20, 21, 22, 23)
