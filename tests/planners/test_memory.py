"""Memory formulas: what autograd really saves, and how batch and crop follow the target."""

from dataclasses import replace
from math import prod

import numpy as np
import pytest
import torch

from nnssl.encoders import build_encoder, encoder_spec
from nnssl.geometry import ScanSizes
from nnssl.networks.precision import has_fast_bf16
from nnssl.networks.segmentor import EncoderSegmentor
from nnssl.planners.budgets import FinetunePlan, plan_finetune, plan_pretrain
from nnssl.planners.decoder_memory import decoder_parameters
from nnssl.planners.encoder_memory import encoder_size
from nnssl.planners.memory import IN_FLIGHT, finetune_bytes, kept_per_voxel
from nnssl.planners.network import NetworkPlan, choose_network
from nnssl.planners.pretrain_memory import pretrain_bytes
from nnssl.planners.probe import FinetuneStep, PretrainStep, measure
from nnssl.recipe import PretrainRecipe

LARGE = ScanSizes(np.full((40, 3), 200.0), np.ones((40, 3)))
PUBLISHED_DECODER = 54_134_704  # SMIT's 64,700,336 with 16 outputs (specification of issue 3) without its encoder


def network_plan(encoder: str, decoder: str | None = None, channels: int = 1, frozen: bool = True) -> NetworkPlan:
    chosen = choose_network(encoder_spec(encoder), input_channels=channels, num_classes=3, decoder=decoder)
    return replace(chosen, frozen=frozen)


def finetune(encoder: str, memory_gb: float) -> FinetunePlan:
    return plan_finetune(network_plan(encoder), LARGE, memory_gb=memory_gb)


def saved_per_sample(plan: NetworkPlan, crop: tuple[int, int, int]) -> int:
    """Bytes that autograd keeps for one more sample, parameters and their bf16 copies not counted."""
    spec = encoder_spec(plan.encoder.name, crop)
    words = plan.arch_kwargs(spec) | {"precision": "bf16"}
    network = EncoderSegmentor(plan.input_channels, plan.num_classes, **words).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    counts = []
    for batch in (1, 2):
        saved: dict[int, int] = {}  # address -> bytes

        def note(tensor: torch.Tensor, saved: dict[int, int] = saved) -> torch.Tensor:
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # a saved output that kept its graph would never be freed

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            logits = network(torch.rand(batch, plan.input_channels, *crop))
            loss = torch.nn.functional.cross_entropy(logits, torch.zeros(batch, *crop, dtype=torch.long))
        assert loss.requires_grad
        counts.append(sum(size for address, size in saved.items() if address not in own))
    return counts[1] - counts[0]


@pytest.mark.parametrize(
    ("encoder", "count"),
    [
        ("vit_large_16", 306_910_208),  # issue 2: at 112^3, the table's native crop
        ("smit_96", 10_565_632 + 48),  # issue 3, and the mask token
        ("smit_repo", 8_763_784 + 48),
        ("swin_unetr", 8_062_002 + 48),
    ],
)
def test_published_encoders_have_the_published_number_of_parameters(encoder: str, count: int) -> None:
    assert encoder_size(encoder_spec(encoder)).parameters == count


@pytest.mark.parametrize(
    "options", [{}, {"qkv_bias": True, "depths": [1, 3, 1, 1]}, {"input_channels": 3, "window": 2}]
)
def test_options_of_a_swin_are_counted(options: dict[str, object]) -> None:
    counted = sum(parameter.numel() for parameter in build_encoder("swin_tiny", options=options).parameters())
    assert encoder_size(encoder_spec("swin_tiny", options=options)).parameters == counted


def test_decoder_parameters_are_those_of_smit_without_norms_and_output() -> None:
    counted = decoder_parameters(network_plan("smit_96"))
    assert counted == pytest.approx(PUBLISHED_DECODER, rel=0.001)


@pytest.mark.parametrize(
    ("plan", "crop"),
    [
        (network_plan("swin_tiny"), (64, 32, 32)),
        (network_plan("swin_tiny", frozen=False), (64, 32, 32)),
        (network_plan("swin_tiny", "unet", channels=2), (64, 32, 32)),
        (network_plan("vit_tiny_8", "unetr", channels=2, frozen=False), (32, 32, 32)),
        (network_plan("vit_tiny_16", "unetr"), (64, 32, 32)),
    ],
    ids=lambda value: "-".join([value.encoder.name, value.decoder]) if isinstance(value, NetworkPlan) else None,
)
def test_the_formula_is_near_what_autograd_saves(plan: NetworkPlan, crop: tuple[int, int, int]) -> None:
    assert kept_per_voxel(plan) * prod(crop) == pytest.approx(saved_per_sample(plan, crop), rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "crop"),
    [
        (network_plan("vit_tiny_8"), (32, 32, 32)),
        (network_plan("vit_tiny_8", channels=2), (32, 32, 32)),
        (network_plan("smit_96"), (64, 64, 64)),
        (network_plan("smit_96", frozen=False), (64, 64, 64)),
        (network_plan("primus_s", frozen=False), (32, 32, 32)),
        (network_plan("resenc_l"), (64, 64, 64)),
        (network_plan("resenc_l", frozen=False), (64, 64, 64)),
    ],
    ids=lambda value: "-".join([value.encoder.name, value.decoder]) if isinstance(value, NetworkPlan) else None,
)
def test_larger_networks_are_near_the_formula_too(plan: NetworkPlan, crop: tuple[int, int, int]) -> None:
    assert kept_per_voxel(plan) * prod(crop) == pytest.approx(saved_per_sample(plan, crop), rel=0.25)


in_bf16 = pytest.mark.skipif(not has_fast_bf16("cpu"), reason="the formulas count bf16, which this processor lacks")


@in_bf16
@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "side", "batch"),
    [
        (network_plan("vit_tiny_8"), 64, 1),
        (network_plan("vit_small_16"), 64, 2),
        (network_plan("vit_base_16"), 64, 2),
        (network_plan("vit_base_16", frozen=False), 64, 2),
        (network_plan("swin_tiny"), 64, 2),
        (network_plan("swin_tiny", frozen=False), 64, 2),
        (network_plan("smit_96"), 64, 2),
        (network_plan("smit_96", frozen=False), 64, 2),
    ],
    ids=lambda value: f"{value.encoder.name}-{value.frozen}" if isinstance(value, NetworkPlan) else None,
)
def test_fine_tuning_needs_the_memory_that_was_planned(plan: NetworkPlan, side: int, batch: int) -> None:
    crop = (side, side, side)
    seen = measure(FinetuneStep(plan, crop, batch), steps=1)
    assert finetune_bytes(plan, crop, batch) == pytest.approx(seen.peak_bytes, rel=0.25)


@in_bf16
@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "sides", "batch"),
    [
        ("vit_tiny_8", (48, 24), 2),
        ("vit_small_16", (64, 32), 2),
        ("vit_base_16", (64, 32), 2),
        ("swin_tiny", (64, 32), 2),
        ("smit_96", (64, 32), 2),
    ],
)
def test_pretraining_needs_the_memory_that_was_planned(encoder: str, sides: tuple[int, int], batch: int) -> None:
    spec = encoder_spec(encoder)
    large, small = ((side, side, side) for side in sides)
    recipe = PretrainRecipe(global_crop=large, local_crop=small)
    seen = measure(PretrainStep(spec, recipe, (72, 72, 72), batch), steps=1)
    assert pretrain_bytes(spec, large, small, batch) == pytest.approx(seen.peak_bytes, rel=0.25)


def test_a_frozen_encoder_costs_activations_only_under_an_adapter_or_a_new_patch_embedding() -> None:
    swin, vit = network_plan("swin_tiny", channels=2), network_plan("vit_tiny_16")
    assert (swin.channels, swin.keeps_activations, vit.keeps_activations) == ("replicate", False, True)
    assert replace(swin, channels="reinit").keeps_activations
    assert replace(swin, frozen=False).keeps_activations


def test_reading_channels_apart_costs_more_than_reading_them_together() -> None:
    together = network_plan("swin_tiny", channels=4, frozen=False)
    crop = (64, 64, 64)
    apart = replace(together, channels="mix")
    per_pass = encoder_size(together.encoder).bytes_per_voxel * prod(crop) * IN_FLIGHT
    more = finetune_bytes(apart, crop, 2) - finetune_bytes(together, crop, 2)
    assert more > 2 * 3 * per_pass


def test_more_memory_never_gives_a_smaller_batch_or_crop() -> None:
    plans = [finetune("vit_small_16", memory) for memory in (2, 8, 24, 80)]
    tokens, batches = [plan.geometry.tokens for plan in plans], [plan.batch_size for plan in plans]
    assert tokens == sorted(tokens)
    assert batches == sorted(batches)
    assert batches[-1] == 8  # the paper's
    assert tokens[0] < 216 == tokens[-1]


def test_memory_shortens_the_crop_of_a_swin_evenly() -> None:
    crops = [finetune("smit_96", memory).geometry.crop for memory in (2.3, 3.2, 80)]
    assert crops[-1] == (96, 96, 96)
    assert all(max(crop) - min(crop) <= 32 for crop in crops)
    assert prod(crops[0]) < prod(crops[1]) < prod(crops[2])


def test_too_little_memory_is_one_line_that_says_how_much_is_needed() -> None:
    with pytest.raises(ValueError, match=r"-gpu_memory_target 1 GB is too little.*needs about [\d.]+ GB"):
        finetune("vit_large_16", 1)


def test_pretraining_draws_each_image_as_often_as_the_paper() -> None:
    plan = plan_pretrain(encoder_spec("vit_small_16"), LARGE, images=2000, datasets=("a",), memory_gb=8)
    assert plan.recipe.steps * plan.recipe.batch_size / 2000 == pytest.approx(648, rel=0.01)
    assert plan.recipe.global_crop == plan.geometry.global_crop


def test_pretraining_a_swin_follows_the_second_paper() -> None:
    plan = plan_pretrain(encoder_spec("smit_96"), LARGE, images=100, datasets=("a",), memory_gb=24)
    assert plan.geometry.spacing_mm == (1.5, 1.5, 2.0)
    assert plan.recipe.global_crop == (96, 96, 96)
    assert plan.recipe.steps * plan.recipe.batch_size / 100 == pytest.approx(500, rel=0.01)  # epochs


def test_pretraining_steps_and_batch_are_bounded() -> None:
    few = plan_pretrain(encoder_spec("vit_small_16"), LARGE, images=3, datasets=("a",), memory_gb=8)
    many = plan_pretrain(encoder_spec("vit_small_16"), LARGE, images=10**7, datasets=("a",), memory_gb=8)
    assert (few.recipe.steps, few.recipe.batch_size) == (1_000, 3)
    assert many.recipe.steps == 125_000
