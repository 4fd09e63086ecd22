"""Projection head of DINO and iBOT: MLP, L2-normalised bottleneck, weight-normalised prototypes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ProjectionHead(nn.Module):
    """Features -> logits over prototypes (DINOv2; 3DINO: 2048 hidden, 256 bottleneck, 65,536 prototypes).

    Parameter names are the published ones: mlp.0, mlp.2, mlp.4, last_layer.weight_g, last_layer.weight_v.
    """

    def __init__(
        self,
        width: int,
        *,
        hidden: int = 2048,
        bottleneck: int = 256,
        prototypes: int = 65536,
        trained_gain: bool = True,
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = Prototypes(bottleneck, prototypes, trained_gain)

    def forward(self, features: Tensor, use: "Callable[[Tensor, Prototypes], Tensor] | None" = None) -> Tensor:
        """(rows, width) -> (rows, prototypes) float32 logits; 0 rows are allowed.

        Bottleneck norm and prototypes run outside autocast: logits are divided by temperatures down to 0.04, where the
        rounding of a bf16 logit (0.4 %) would move a target by 10 %; and a bf16 copy would not spare the float32 one
        that the losses need.

        Args:
            use: what to return instead of logits, of the unit rows (rows, bottleneck) and the prototypes. It is called
                here because a network that is spread over processes is whole only while its `forward` runs.
        """
        bottleneck = self.mlp(features)
        with torch.autocast(bottleneck.device.type, enabled=False):
            unit = bottleneck if bottleneck.dtype == torch.float64 else bottleneck.float()
            unit = F.normalize(unit, eps=1e-12, dim=-1)
            return self.last_layer(unit) if use is None else use(unit, self.last_layer)


class Prototypes(nn.Module):
    """Linear layer without bias whose rows are gain * direction (weight normalisation, arXiv:1602.07868).

    The gain starts at 1; it is trained in DINOv2 and 3DINO and stays 1 in DINO v1 and SMIT.
    """

    def __init__(self, width: int, prototypes: int, trained_gain: bool = True) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1), requires_grad=trained_gain)
        self.weight_v = nn.Parameter(torch.empty(prototypes, width))
        nn.init.kaiming_uniform_(self.weight_v, a=5**0.5)  # PyTorch's default of a linear layer; its length sets
        # how fast AdamW turns a direction

    def forward(self, unit: Tensor) -> Tensor:
        """(rows, width) of length 1 -> (rows, prototypes): gain times cosine similarity."""
        scale = self.weight_g / self.weight_v.norm(dim=1, keepdim=True)
        return F.linear(unit, self.weight_v).mul_(scale.T)  # no scaled copy of the weights
