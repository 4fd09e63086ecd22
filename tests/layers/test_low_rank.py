"""Low-rank adaptation against its formula."""

import pytest
import torch
from torch import nn

from nnssl.layers.low_rank import LowRankLinear


@pytest.mark.parametrize(("alpha", "factor"), [(None, 1.0), (6.0, 3.0)])
def test_output_is_the_layer_plus_the_scaled_product(alpha: float | None, factor: float) -> None:
    torch.manual_seed(0)
    layer = LowRankLinear(5, 7, rank=2, alpha=alpha)
    nn.init.normal_(layer.low_rank_b)
    tokens = torch.randn(3, 4, 5)
    merged = layer.weight + factor * layer.low_rank_b @ layer.low_rank_a
    torch.testing.assert_close(layer(tokens), tokens @ merged.T + layer.bias)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_around_another_has_its_weights_and_its_output(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(5, 7, bias=bias)
    layer = LowRankLinear.around(linear, 3)
    tokens = torch.randn(4, 5)
    assert torch.equal(layer(tokens), linear(tokens))
    assert layer.weight is linear.weight and layer.bias is linear.bias
    assert layer.low_rank_a.shape == (3, 5) and layer.low_rank_a.any() and not layer.low_rank_b.any()


@pytest.mark.parametrize("rank", [0, 6])
def test_a_rank_that_does_not_fit_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank {rank}: must lie in 1 to 5"):
        LowRankLinear(5, 7, rank=rank)
