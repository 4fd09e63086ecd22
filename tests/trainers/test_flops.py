"""FLOPs of a step against numbers worked out by hand, and that counting changes nothing."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from nnssl.encoders import build_encoder
from nnssl.trainers.flops import FlopCounter, FlopMeter, listed_peak, measured_peak
from nnssl.trainers.learning import Learner
from nnssl.trainers.optimiser import rates_at
from tests.pretext.toys import RECIPE, prepared, toy_task

CPU = torch.device("cpu")
DIM, DEPTH, PATCH, SIDE, BATCH = 24, 2, 8, 16, 3


def forward_flops(tokens: int, patches: int) -> tuple[int, int]:
    """Of a plain ViT: 2 operations per multiplication; (attention's products, all others)."""
    linear = 2 * BATCH * tokens * DIM * DIM * (3 + 1 + 4 + 4)  # qkv, projection, MLP of 4 times the width
    attention = 2 * 2 * BATCH * tokens * tokens * DIM  # queries by keys, weights by values
    embedding = 2 * BATCH * patches * PATCH**3 * DIM
    return DEPTH * attention, DEPTH * linear + embedding


@pytest.fixture
def encoder() -> nn.Module:
    torch.manual_seed(0)
    return build_encoder("vit_tiny_8", native_crop=(SIDE,) * 3, options={"depth": DEPTH, "dim": DIM})


def test_the_forward_pass_of_a_vit_costs_what_the_formula_says(encoder: nn.Module) -> None:
    with FlopCounter() as counter, torch.no_grad():
        encoder(torch.rand(BATCH, 1, SIDE, SIDE, SIDE))
    assert counter.flops == sum(forward_flops(tokens=9, patches=8))


def test_the_backward_pass_costs_twice_the_forward_and_attention_its_scores_again(encoder: nn.Module) -> None:
    with FlopCounter() as counter:
        encoder(torch.rand(BATCH, 1, SIDE, SIDE, SIDE)).summary.sum().backward()
    attention, others = forward_flops(tokens=9, patches=8)
    embedding = 2 * BATCH * 8 * PATCH**3 * DIM  # its input needs no gradient: once forward, once for the weights
    # fused attention recomputes its scores: 5 products instead of 4
    assert counter.flops == 3 * others - embedding + attention + 5 * attention // 2


def test_pytorchs_own_counter_agrees(encoder: nn.Module) -> None:
    volume = torch.rand(BATCH, 1, SIDE, SIDE, SIDE)
    with FlopCounterMode(display=False) as peer:
        encoder(volume).summary.sum().backward()
    with FlopCounter() as counter:
        encoder(volume).summary.sum().backward()
    assert counter.flops == peer.get_total_flops() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counting_changes_no_bit(encoder: nn.Module, dtype: torch.dtype) -> None:
    volume = torch.rand(BATCH, 1, SIDE, SIDE, SIDE)

    def gradients() -> list[torch.Tensor]:
        encoder.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = encoder(volume).summary.square().sum()
        loss.backward()
        return [parameter.grad.clone() for parameter in encoder.parameters() if parameter.grad is not None]

    plain = gradients()
    with FlopCounter():
        counted = gradients()
    assert all(torch.equal(one, other) for one, other in zip(plain, counted, strict=True))


@pytest.mark.parametrize("recompute", [False, True])
def test_a_counted_training_step_moves_the_weights_to_the_same_bits(recompute: bool) -> None:
    def trained(counted: bool) -> tuple[dict[str, torch.Tensor], float, int]:
        recipe = replace(RECIPE, recompute=recompute, warmup_fraction=0.0)
        task = toy_task("simmim", ["drop_path=0.5"], recipe=recipe).train()
        learner, meter = Learner(task, recipe, autocast=torch.bfloat16), FlopMeter(CPU, torch.bfloat16)
        for step in range(2):
            with meter.counting() if counted else nullcontext():
                values = learner.learn(step, prepared(task, seed=step), rates_at(step, recipe))
        return task.state_dict(), values["loss"], meter.step_flops

    plain, counted = trained(False), trained(True)
    assert all(torch.equal(value, counted[0][name]) for name, value in plain[0].items())
    assert counted[1] == plain[1] and counted[2] > 1e6


def test_only_the_first_step_is_counted() -> None:
    meter, weight = FlopMeter(CPU, None), torch.rand(8, 16)
    for rows in (4, 40):
        with meter.counting():
            F.linear(torch.rand(rows, 16), weight)
    assert meter.step_flops == 2 * 4 * 16 * 8
    rates = meter.rates(seconds=0.5)
    assert rates["tflops"] == meter.step_flops / 0.5 / 1e12
    assert rates["mfu"] == meter.step_flops / 0.5 / meter.peak


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A40", 150),
        ("NVIDIA GeForce RTX 4090", 165),
    ],
)
def test_the_peak_of_a_known_gpu_is_the_data_sheets(name: str, tera: float) -> None:
    assert listed_peak(name) == tera * 1e12


@pytest.mark.parametrize("name", ["NVIDIA L40", "Tesla V100-SXM2-32GB", "NVIDIA A10", "AMD Instinct MI300X"])
def test_other_gpus_are_measured(name: str) -> None:
    assert listed_peak(name) is None


def test_a_measured_peak_is_that_of_a_large_product() -> None:
    peak = measured_peak(CPU, torch.float32)
    assert 1e8 < peak < 1e14
