"""The baseline of benchmarks/segmentor_step.py computes what our segmentor computes, and has the published size."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nnssl.encoders import build_encoder
from nnssl.networks.segmentor import EncoderSegmentor

published = pytest.importorskip("benchmarks.published_segmentor", reason="the baseline uses MONAI's blocks")

TOY: dict[str, Any] = {"dim": 64, "depth": 4, "heads": 4}
MONAI_NAMES = (
    ("out.conv.conv", "out"),
    (".layer.", "."),
    ("transp_conv.conv", "up"),
    ("conv_block", "block"),
    (".conv.weight", ".weight"),
)


def _our_name(name: str) -> str:
    for theirs, ours in MONAI_NAMES:
        name = name.replace(theirs, ours)
    return name


def _pair() -> tuple[EncoderSegmentor, nn.Module]:
    """Both with the same weights, large enough that every part matters."""
    torch.manual_seed(0)
    words = {"encoder_options": TOY, "adapter_width": 64, "precision": "fp32", "offset_order": "reference"}
    ours = EncoderSegmentor(1, 3, "vit_tiny_16", native_crop=[32, 32, 32], **words)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    theirs = published.PublishedSegmentor(build_encoder("vit_tiny_16", native_crop=(32, 32, 32), options=TOY), 3)
    state = ours.state_dict()
    names = {_our_name(name): name for name in theirs.state_dict()}
    theirs.load_state_dict({names[name]: value for name, value in state.items()})
    return ours, theirs.train()


def test_logits_and_gradients_are_those_of_full_width_fp32_and_the_reference_order() -> None:
    ours, theirs = _pair()
    stored, upstream = torch.rand(1, 1, 48, 48, 48), torch.randn(1, 3, 48, 48, 48)
    logits = []
    for network, volume in ((ours, stored), (theirs, stored * 2 - 1)):
        torch.manual_seed(2)  # of the drop paths
        logits.append(network(volume))
        logits[-1].backward(upstream)
    assert (logits[0] - logits[1]).abs().max() < 1e-4 * logits[0].abs().max()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters() if parameter.grad is not None}
    others = {_our_name(name): one.grad for name, one in theirs.named_parameters() if one.grad is not None}
    assert gradients.keys() == others.keys()
    largest = max(float(gradient.norm()) for gradient in gradients.values())
    for name, gradient in gradients.items():  # a bias before a normalisation has none but noise
        assert (gradient - others[name]).norm() <= 0.02 * gradient.norm() + 1e-4 * largest, name


def test_the_published_size_and_cost() -> None:
    with torch.device("meta"):
        network = published.PublishedSegmentor(build_encoder("vit_large_16"), 14)
    own = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    assert own == 42_974_446  # 24.61 M adapter, 18.36 M decoder
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 1, 112, 112, 112, device="meta"))
    assert counter.get_total_flops() == pytest.approx(1788e9, rel=0.001)
