"""The projection head against the golden numbers and PyTorch's weight normalisation."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from nnssl.layers.heads import ProjectionHead
from tests.rules import normal, rule_tensor


def _golden_head() -> ProjectionHead:
    head = ProjectionHead(96, hidden=64, bottleneck=16, prototypes=80)
    keys = {key: tuple(value.shape) for key, value in head.state_dict().items()}
    values = {key: torch.from_numpy(rule_tensor(f"dino_head.{key}", shape)) for key, shape in keys.items()}
    head.load_state_dict(values)
    return head


def test_head_equals_the_reference(golden: Callable[[str], Any]) -> None:
    stored, head = golden("g05_dino_losses.npz"), _golden_head()
    features = torch.from_numpy(normal("head.input", (5, 96)))
    with torch.no_grad():
        np.testing.assert_allclose(head.mlp(features), stored["head.mlp_output"], atol=1e-5)
        np.testing.assert_allclose(head(features), stored["head.output"], atol=1e-5)


def test_parameter_names_and_shapes_are_the_published_ones(golden: Callable[[str], Any]) -> None:
    lines = [line.split("\t") for line in golden("keys_dino_head.txt").splitlines()]
    published = {name.removeprefix("dino_head."): shape for name, shape, *_ in lines}
    own = {key: str(tuple(value.shape)) for key, value in _golden_head().state_dict().items()}
    assert own == published


def test_prototypes_equal_the_weight_normalised_linear_layer_of_pytorch() -> None:
    torch.manual_seed(0)
    head = ProjectionHead(8, hidden=8, bottleneck=4, prototypes=6)
    peer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 6, bias=False))
    with torch.no_grad():
        peer.parametrizations.weight.original0.copy_(torch.rand(6, 1))
        head.last_layer.weight_g.copy_(peer.parametrizations.weight.original0)
        head.last_layer.weight_v.copy_(peer.parametrizations.weight.original1)
    rows = nn.functional.normalize(torch.randn(3, 4), dim=-1)
    torch.testing.assert_close(head.last_layer(rows), peer(rows))


def test_gains_are_trained() -> None:
    head = ProjectionHead(8, hidden=8, bottleneck=4, prototypes=6)
    head(torch.randn(3, 8, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())
    assert bool((head.last_layer.weight_g == 1).all())


def test_a_published_head_has_the_published_size() -> None:
    with torch.device("meta"):
        head = ProjectionHead(1024)
    assert sum(parameter.numel() for parameter in head.parameters()) == 23_662_848


def test_logits_stay_float32_under_autocast() -> None:
    head = ProjectionHead(8, hidden=8, bottleneck=4, prototypes=6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(torch.ones(2, 8)).dtype == torch.float32
