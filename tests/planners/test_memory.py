"""Memory formulas: what autograd really saves, and how batch and crop follow the target."""

import numpy as np
import pytest
import torch

from nnssl.encoders import encoder_spec
from nnssl.geometry import ScanSizes
from nnssl.networks.segmentor import EncoderSegmentor
from nnssl.planners.budgets import plan_finetune, plan_pretrain
from nnssl.planners.memory import IN_FLIGHT, encoder_size, finetune_bytes

LARGE = ScanSizes(np.full((40, 3), 200.0), np.ones((40, 3)))


def test_vit_large_has_the_published_number_of_parameters() -> None:
    # 306,910,208 at 112^3 (issue 2): the table's native crop
    assert encoder_size("vit_large_16").parameters == 306_910_208


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "width"), [(1, 96), (2, 96)])
def test_the_formula_is_near_what_autograd_saves(channels: int, width: int) -> None:
    network = EncoderSegmentor(
        channels, 3, "vit_tiny_8", native_crop=(32, 32, 32), adapter_width=width, precision="bf16"
    )
    own = {parameter.untyped_storage().data_ptr() for parameter in network.train().parameters()}
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = network(torch.rand(1, channels, 32, 32, 32))
        loss = torch.nn.functional.cross_entropy(logits, torch.zeros(1, 32, 32, 32, dtype=torch.long))
    counted = sum(size for address, size in saved.items() if address not in own)
    assert loss.requires_grad
    one, two = (
        finetune_bytes(encoder_size("vit_tiny_8"), 64, batch, channels=channels, classes=3, width=width)
        for batch in (1, 2)
    )
    assert (two - one) / IN_FLIGHT == pytest.approx(counted, rel=0.3)


def test_more_memory_never_gives_a_smaller_batch_or_crop() -> None:
    spec = encoder_spec("vit_small_16")
    plans = [plan_finetune(spec, LARGE, channels=1, classes=3, memory_gb=memory) for memory in (3, 8, 24, 80)]
    tokens, batches = [plan.geometry.tokens for plan in plans], [plan.batch_size for plan in plans]
    assert tokens == sorted(tokens)
    assert batches == sorted(batches)
    assert batches[-1] == 8  # the paper's
    assert tokens[0] < 216 == tokens[-1]


def test_too_little_memory_is_one_line_that_says_how_much_is_needed() -> None:
    with pytest.raises(ValueError, match=r"-gpu_memory_target 1 GB is too little.*needs about [\d.]+ GB"):
        plan_finetune(encoder_spec("vit_large_16"), LARGE, channels=1, classes=3, memory_gb=1)


def test_pretraining_draws_each_image_as_often_as_the_paper() -> None:
    plan = plan_pretrain(encoder_spec("vit_small_16"), LARGE, images=2000, datasets=("a",), memory_gb=8)
    assert plan.recipe.steps * plan.recipe.batch_size / 2000 == pytest.approx(648, rel=0.01)
    assert plan.recipe.global_crop == plan.geometry.global_crop


def test_pretraining_steps_and_batch_are_bounded() -> None:
    few = plan_pretrain(encoder_spec("vit_small_16"), LARGE, images=3, datasets=("a",), memory_gb=8)
    many = plan_pretrain(encoder_spec("vit_small_16"), LARGE, images=10**7, datasets=("a",), memory_gb=8)
    assert (few.recipe.steps, few.recipe.batch_size) == (1_000, 3)
    assert many.recipe.steps == 125_000
