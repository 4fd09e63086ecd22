"""Blocks that run again in the backward pass learn the same, on less memory."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from nnssl.encoders import build_encoder
from nnssl.layers.joint_batch import joint_batch
from nnssl.layers.recomputation import recompute

ENCODERS = pytest.mark.parametrize("name", ["vit_tiny_8", "swin_tiny"])


def _encoder(name: str, again: bool) -> nn.Module:
    torch.manual_seed(0)
    encoder = build_encoder(name, native_crop=(32, 32, 32), drop_path=0.4).train()
    if again:
        names = [name for name, _ in encoder.named_modules()]
        recompute(encoder, [name for name in names if re.fullmatch(r"(layers\.\d+\.)?blocks\.\d+", name)])
    return encoder


def _learnt(encoder: nn.Module) -> dict[str, Tensor]:
    """Gradients of rank 1 of two processes; the forward pass alone knows that it has a share of a batch."""
    volume = torch.rand(3, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    with joint_batch(3, rank=1, processes=2), torch.autocast("cpu", torch.bfloat16):
        loss = encoder(volume).summary.square().sum()
    loss.backward()
    return {name: part.grad for name, part in encoder.named_parameters() if part.grad is not None}


def _kept(run: Callable[[], object]) -> int:
    """Bytes that autograd keeps."""
    sizes: list[int] = []
    with saved_tensors_hooks(lambda tensor: (sizes.append(tensor.nbytes), tensor)[1], lambda tensor: tensor):
        run()
    return sum(sizes)


@ENCODERS
def test_gradients_and_random_draws_stay(name: str) -> None:
    plain, again = (_learnt(_encoder(name, way)) for way in (False, True))
    assert plain.keys() == again.keys()
    for key, gradient in plain.items():
        assert gradient.equal(again[key]), key


@ENCODERS
def test_less_is_kept_for_the_backward_pass(name: str) -> None:
    volume = torch.rand(2, 1, 32, 32, 32)
    plain, again = (_kept(lambda way=way: _encoder(name, way)(volume)) for way in (False, True))
    assert again < 0.5 * plain


def test_state_dicts_and_evaluation_stay() -> None:
    plain, again = (_encoder("vit_tiny_8", way).eval() for way in (False, True))
    assert plain.state_dict().keys() == again.state_dict().keys()
    with torch.no_grad():
        volume = torch.rand(1, 1, 32, 32, 32)
        assert plain(volume).summary.equal(again(volume).summary)
