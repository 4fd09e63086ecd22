"""Learning rates and weight decay per parameter and per step, against the numbers of the 3DINO reference."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from nnssl.encoders import build_encoder
from nnssl.pretext.base import SMIT_RECIPE
from nnssl.recipe import PretrainRecipe
from nnssl.trainers.optimiser import blocks_of, build_optimiser, multipliers_of, rates_at, set_rates
from tests.trainers.pretrain_toy import ToyTask

RECIPE = PretrainRecipe()


def blocks(depth: int) -> list[str]:
    """Of a ViT."""
    return [f"blocks.{index}." for index in range(depth)]


def flat(name: str) -> str:
    """`blocks.<chunk>.<block>.x` of the reference under our name `blocks.<block>.x`."""
    return re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)


@pytest.mark.parametrize(("array", "depth"), [("multipliers", 8), ("multipliers_head", 0)])
def test_multipliers_of_every_parameter_agree_with_the_reference(
    golden: Callable[[str], Any], array: str, depth: int
) -> None:
    file = golden("g05_dino_losses.npz")
    for index, name in enumerate(file[f"{array}.name"]):
        found = multipliers_of(flat(str(name)), blocks(depth), RECIPE)
        expected = [file[f"{array}.{what}"][index] for what in ("lr", "wd", "last_layer")]
        assert list(found) == pytest.approx(expected, rel=1e-12), name


@pytest.mark.parametrize(
    ("stage", "recipe"),
    [
        ("standard", PretrainRecipe(steps=125_000, batch_size=512, base_lr=2e-3)),
        ("highres", PretrainRecipe(steps=12_500, batch_size=256, base_lr=1e-3)),
    ],
)
def test_rates_of_both_stages_agree_with_the_reference(
    golden: Callable[[str], Any], stage: str, recipe: PretrainRecipe
) -> None:
    file = golden("g05b_schedules.npz")
    for index, step in enumerate(file[f"{stage}.iterations"]):
        rates = rates_at(int(step), recipe)
        assert rates.lr == pytest.approx(file[f"{stage}.lr"][index], rel=1e-12)
        assert rates.last_layer_lr == pytest.approx(file[f"{stage}.last_layer_lr"][index], rel=1e-12)
        assert rates.weight_decay == pytest.approx(file[f"{stage}.weight_decay"][index], rel=1e-12)


def test_the_learning_rate_grows_with_the_square_root_of_the_batch() -> None:
    peaks = [
        max(rates_at(step, PretrainRecipe(steps=100, batch_size=batch)).lr for step in range(100)) for batch in (8, 32)
    ]
    assert peaks[1] == pytest.approx(2 * peaks[0])
    assert peaks[1] == pytest.approx(2e-3 * math.sqrt(32 / 1024))


def test_the_first_layer_of_a_vit_large_learns_at_the_published_fraction() -> None:
    assert multipliers_of("cls_token", blocks(24), RECIPE).lr_multiplier == pytest.approx(0.9**25)
    assert multipliers_of("patch_embed.proj.weight", blocks(24), RECIPE).lr_multiplier == pytest.approx(
        0.01436, abs=5e-6
    )
    assert multipliers_of("blocks.23.attn.qkv.weight", blocks(24), RECIPE).lr_multiplier == pytest.approx(0.9)


def test_every_trained_parameter_is_in_exactly_one_group() -> None:
    task = ToyTask()
    optimiser = build_optimiser(task.trained_parts(), RECIPE)
    inside = [id(parameter) for group in optimiser.param_groups for parameter in group["params"]]
    trained = [id(p) for part in task.trained_parts().values() for p in part.parameters()]
    assert sorted(inside) == sorted(trained)
    multipliers = [(g["lr_multiplier"], g["weight_decay_multiplier"], g["last_layer"]) for g in optimiser.param_groups]
    assert len(set(multipliers)) == len(multipliers)


def test_shared_parameters_are_taken_once_and_frozen_ones_left_out() -> None:
    shared, frozen = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
    optimiser = build_optimiser({"one": shared, "two": nn.Sequential(shared, frozen)}, RECIPE)
    assert sum(len(group["params"]) for group in optimiser.param_groups) == 2
    with pytest.raises(ValueError, match="trains nothing"):
        build_optimiser({"frozen": frozen}, RECIPE)


def test_blocks_are_read_from_the_parameter_names_in_the_order_of_the_data() -> None:
    vit = [name for name, _ in build_encoder("vit_tiny_16", native_crop=(16, 16, 16)).named_parameters()]
    assert blocks_of(reversed(vit)) == blocks(12)
    assert blocks_of(name for name, _ in nn.Linear(2, 2).named_parameters()) == []
    primus = [f"eva.blocks.{index}.attn.q_proj.weight" for index in (1, 0, 10, 2)]
    assert blocks_of(primus) == [f"eva.blocks.{index}." for index in (0, 1, 2, 10)]


def test_layers_of_a_swin_decay_block_by_block_and_merges_with_the_block_before() -> None:
    swin = build_encoder("swin_tiny", options={"width": 12, "depths": [1, 2, 1, 1], "heads": [1, 1, 2, 2]})
    order = blocks_of(name for name, _ in swin.named_parameters())
    assert order == [f"layers.{stage}.blocks.{block}." for stage, block in ((0, 0), (1, 0), (1, 1), (2, 0), (3, 0))]
    recipe = replace(RECIPE, layer_decay=0.5, patch_embed_lr=1.0)
    exponents = {
        "mask_token": 6, "patch_embed.norm.weight": 6, "layers.0.blocks.0.mlp.fc1.weight": 5,
        "layers.0.downsample.reduction.weight": 5, "layers.1.blocks.1.attn.qkv.weight": 3,
        "layers.1.downsample.norm.weight": 3, "layers.3.blocks.0.norm1.bias": 1, "norm3.weight": 0,
    }  # fmt: skip
    assert set(exponents) <= {name for name, _ in swin.named_parameters()}
    for name, exponent in exponents.items():
        assert multipliers_of(name, order, recipe).lr_multiplier == 0.5**exponent, name


def test_biases_norms_and_bias_tables_decay_only_when_asked() -> None:
    names = ("norm1.weight", "mlp.fc1.bias", "ls1.gamma", "attn.relative_position_bias_table")
    for decay_all in (False, True):
        recipe = replace(RECIPE, decay_all=decay_all)
        found = {multipliers_of(f"blocks.0.{name}", blocks(1), recipe).weight_decay_multiplier for name in names}
        assert found == {float(decay_all)}


def test_the_smit_benchmarks_rates_are_constant_in_the_batch_and_end_at_zero() -> None:
    """AdamW 2e-4, 30 of 500 epochs of warm-up; the code's first epoch has a rate of 0 throughout, here one step has."""
    for batch in (2, 64):
        recipe = PretrainRecipe(steps=5000, batch_size=batch, **SMIT_RECIPE)
        rates = [rates_at(step, recipe).lr for step in range(5001)]
        assert max(rates) == rates[299] == 2e-4
        assert rates[1] > 0 and rates[150] == pytest.approx(2e-4 * 150 / 299) and rates[5000] == 0
        assert {rates_at(step, recipe).weight_decay for step in (0, 2500, 4999)} == {0.01}
        assert [rates_at(step, recipe).last_layer_lr for step in (9, 10)] == [0.0, rates[10]]


def test_prototypes_rest_while_the_other_layers_learn() -> None:
    head = nn.ModuleDict({"mlp": nn.Linear(3, 3), "last_layer": nn.Linear(3, 4, bias=False)})
    recipe = replace(RECIPE, steps=10, batch_size=1024, warmup_fraction=0.0, freeze_last_layer=0.2)
    optimiser = build_optimiser({"head": head}, recipe)
    for step, rests in ((1, True), (2, False)):
        before = {name: parameter.detach().clone() for name, parameter in head.named_parameters()}
        for parameter in head.parameters():
            parameter.grad = torch.ones_like(parameter)
        set_rates(optimiser, rates_at(step, recipe))
        optimiser.step()
        changed = {name: not torch.equal(before[name], parameter) for name, parameter in head.named_parameters()}
        assert changed == {"mlp.weight": True, "mlp.bias": True, "last_layer.weight": not rests}


def test_one_step_is_adamws_formula() -> None:
    part = nn.Linear(2, 1)
    recipe = replace(RECIPE, steps=4, batch_size=1024, warmup_fraction=0.0, weight_decay=(0.1, 0.1))
    before = part.weight.detach().clone()
    optimiser = build_optimiser({"head": part}, recipe)
    set_rates(optimiser, rates_at(0, recipe))
    part.weight.grad, part.bias.grad = torch.tensor([[3.0, -4.0]]), torch.zeros(1)
    optimiser.step()
    expected = before * (1 - 2e-3 * 0.1) - 2e-3 * torch.tensor([[1.0, -1.0]])  # first step: m / sqrt(v) is the sign
    torch.testing.assert_close(part.weight.detach(), expected)
