"""Low-rank adaptation: a frozen linear layer plus a trained product of two thin matrices."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NAMES = ("low_rank_a", "low_rank_b")


class LowRankLinear(nn.Linear):
    """y = W x + b + (alpha / rank) B A x (Hu et al. 2021, arXiv:2106.09685, section 4.1).

    A (rank, inputs) starts random, B (outputs, rank) at zero, so that nothing changes at first. W and b keep their
    names; A and B are `low_rank_a` and `low_rank_b`.
    """

    def __init__(self, inputs: int, outputs: int, *, rank: int, alpha: float | None = None, bias: bool = True) -> None:
        """`alpha` None is `rank`: a factor of 1."""
        super().__init__(inputs, outputs, bias=bias)
        if not 0 < rank <= min(inputs, outputs):
            raise ValueError(f"low-rank adaptation of rank {rank}: must lie in 1 to {min(inputs, outputs)}")
        self.scale = 1.0 if alpha is None else alpha / rank
        self.low_rank_a = nn.Parameter(torch.empty(rank, inputs))
        self.low_rank_b = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.low_rank_a, a=5**0.5)  # as the paper's code; its text says Gaussian

    @classmethod
    def around(cls, linear: nn.Linear, rank: int) -> "LowRankLinear":
        """A layer with the very weight and bias of `linear`, and with its output at first."""
        with torch.device("meta"):
            layer = cls(linear.in_features, linear.out_features, rank=rank, bias=linear.bias is not None)
        layer = layer.to_empty(device=linear.weight.device)
        nn.init.kaiming_uniform_(layer.low_rank_a, a=5**0.5)
        nn.init.zeros_(layer.low_rank_b)
        layer.weight, layer.bias = linear.weight, linear.bias
        return layer

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        change = F.linear(F.linear(tokens, self.low_rank_a), self.low_rank_b)
        return torch.add(super().forward(tokens), change, alpha=self.scale)
