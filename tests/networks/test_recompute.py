"""Recomputed parts give the same gradients from less memory."""

import copy

import torch
from torch import Tensor, nn

from nnssl.networks.recompute import recomputed


def _part(norm: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), norm, nn.Dropout(0.5), nn.Linear(32, 8), nn.GELU())


def _gradients(part: nn.Module, out: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(out.square().sum(), list(part.parameters())))


def _saved_bytes(part: nn.Module, rows: Tensor, again: bool) -> int:
    own = {parameter.data_ptr() for parameter in part.parameters()}
    saved: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = recomputed(part, rows) if again else part(rows)
    assert out.requires_grad
    return sum(tensor.nbytes for address, tensor in saved.items() if address not in own)


def test_gradients_are_the_same_with_the_same_random_numbers() -> None:
    part, rows = _part(nn.LayerNorm(32)), torch.randn(16, 8)
    torch.manual_seed(1)
    kept = _gradients(part, part(rows))
    torch.manual_seed(1)
    again = _gradients(part, recomputed(part, rows))
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))


def test_only_the_inputs_are_kept() -> None:
    part, rows = _part(nn.LayerNorm(32)), torch.randn(1024, 8)
    assert _saved_bytes(part, rows, again=False) > 4 * rows.nbytes
    assert _saved_bytes(part, rows, again=True) <= rows.nbytes


def test_running_statistics_move_once() -> None:
    part, rows = _part(nn.BatchNorm1d(32)), torch.randn(16, 8)
    other = copy.deepcopy(part)
    part(rows).sum().backward()
    recomputed(other, rows).sum().backward()
    assert torch.equal(part[2].running_mean, other[2].running_mean)


def test_without_gradients_it_is_a_plain_call() -> None:
    part = _part(nn.LayerNorm(32)).to("meta").eval()
    assert recomputed(part, torch.empty(2, 8, device="meta")).shape == (2, 8)
    with torch.no_grad():
        assert not recomputed(_part(nn.LayerNorm(32)), torch.ones(2, 8)).requires_grad
