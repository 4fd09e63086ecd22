"""Crop, batch and length of training that fit a memory target: for fine-tuning and for pretraining."""

import math
from dataclasses import dataclass

from nnssl.encoders.base import EncoderSpec
from nnssl.geometry import ScanSizes, token_count
from nnssl.networks.adapter import default_width
from nnssl.planners.crops import FinetuneCrop, PretrainCrop, Spacing, finetune_crop, pretrain_crop
from nnssl.planners.memory import EncoderSize, encoder_size, finetune_bytes, pretrain_bytes, usable_bytes
from nnssl.recipe import FineTuneRecipe, PretrainRecipe

FINETUNE_BATCH = (2, 8)  # nnU-Net's smallest; the paper's
PRETRAIN_BATCH = (2, 512)  # two, or KoLeo's nearest neighbour does not exist; the paper's
COVERED_SHARE = 0.05  # nnU-Net: one batch shows at most 5 % of the data set
PASSES = 648  # 64 M draws from 98,815 images in the paper
STEPS = (1_000, 125_000)  # below, warm-up and schedules are too short; the paper's
SMALLEST_BUDGET = 8  # tokens


@dataclass(frozen=True)
class FinetunePlan:
    """3d_fullres: geometry, batch and recipe."""

    geometry: FinetuneCrop
    batch_size: int
    adapter_width: int
    recipe: FineTuneRecipe
    memory_gb: float  # estimate
    token_budget: int  # of the encoder's native crop
    cut_by_memory: bool
    spacing_given: bool


@dataclass(frozen=True)
class PretrainPlan:
    """pretrain: geometry and recipe (which holds batch and steps)."""

    geometry: PretrainCrop
    recipe: PretrainRecipe
    datasets: tuple[str, ...]
    images: int  # scans x channels
    memory_gb: float
    token_budget: int
    cut_by_memory: bool


def native_tokens(spec: EncoderSpec) -> int:
    """Tokens of the crop that the encoder was (or by default is) pretrained with."""
    return token_count([side // spec.crop_multiple for side in spec.native_crop])


def plan_finetune(
    spec: EncoderSpec,
    sizes: ScanSizes,
    *,
    channels: int,
    classes: int,
    memory_gb: float,
    spacing_mm: Spacing | None = None,
) -> FinetunePlan:
    """Crop within the encoder's own token count, then the largest batch up to 8; memory lowers first batch, then crop.

    Raises:
        ValueError: even the smallest crop does not fit; the message says how much is needed.
    """
    size, width, budget = encoder_size(spec.name), default_width(spec.channels[-1]), native_tokens(spec)
    while True:
        geometry = finetune_crop(sizes, spec.crop_multiple, budget, spacing_mm=spacing_mm)
        needed = _finetune_needs(size, geometry.tokens, (channels, classes, width))
        batch = _largest_batch(needed, FINETUNE_BATCH, memory_gb)
        if batch or budget <= SMALLEST_BUDGET:
            break
        budget = max(SMALLEST_BUDGET, int(min(budget, geometry.tokens) * 0.9))
    _check_fits(batch, needed[FINETUNE_BATCH[0]], memory_gb, f"fine-tuning on {spec.name}")
    voxels = float(sizes.resampled(geometry.spacing_mm).prod(axis=1).sum())
    covered = round(COVERED_SHARE * voxels / math.prod(geometry.crop))
    batch = max(FINETUNE_BATCH[0], min(batch, covered))
    return FinetunePlan(
        geometry,
        batch,
        width,
        FineTuneRecipe(),
        memory_gb=needed[batch] / 1e9,
        token_budget=native_tokens(spec),
        cut_by_memory=budget < native_tokens(spec),
        spacing_given=spacing_mm is not None,
    )


def plan_pretrain(
    spec: EncoderSpec, sizes: ScanSizes, *, images: int, datasets: tuple[str, ...], memory_gb: float
) -> PretrainPlan:
    """Views within the encoder's token count, the largest batch that fits, and steps for the paper's 648 passes."""
    size, budget = encoder_size(spec.name), native_tokens(spec)
    while True:
        geometry = pretrain_crop(sizes, spec.crop_multiple, budget)
        needed = _pretrain_needs(size, geometry)
        batch = _largest_batch(needed, PRETRAIN_BATCH, memory_gb)
        if batch or budget <= SMALLEST_BUDGET:
            break
        budget = max(SMALLEST_BUDGET, int(min(budget, geometry.global_tokens) * 0.9))
    _check_fits(batch, needed[PRETRAIN_BATCH[0]], memory_gb, f"pretraining {spec.name}")
    batch = max(PRETRAIN_BATCH[0], min(batch, images))
    steps = min(max(math.ceil(PASSES * images / batch), STEPS[0]), STEPS[1])
    recipe = PretrainRecipe(
        global_crop=geometry.global_crop, local_crop=geometry.local_crop, steps=steps, batch_size=batch
    )
    return PretrainPlan(
        geometry,
        recipe,
        datasets,
        images,
        memory_gb=needed[batch] / 1e9,
        token_budget=native_tokens(spec),
        cut_by_memory=budget < native_tokens(spec),
    )


def _finetune_needs(size: EncoderSize, tokens: int, network: tuple[int, int, int]) -> dict[int, float]:
    channels, classes, width = network
    return {
        batch: finetune_bytes(size, tokens, batch, channels=channels, classes=classes, width=width)
        for batch in range(FINETUNE_BATCH[0], FINETUNE_BATCH[1] + 1)
    }


def _pretrain_needs(size: EncoderSize, geometry: PretrainCrop) -> dict[int, float]:
    return {
        batch: pretrain_bytes(size, geometry.global_tokens, geometry.local_tokens, batch)
        for batch in range(PRETRAIN_BATCH[0], PRETRAIN_BATCH[1] + 1)
    }


def _largest_batch(needed: dict[int, float], bounds: tuple[int, int], memory_gb: float) -> int:
    """The largest batch within the bounds that fits, or 0."""
    fitting = [batch for batch in range(bounds[0], bounds[1] + 1) if needed[batch] <= usable_bytes(memory_gb)]
    return max(fitting, default=0)


def _check_fits(batch: int, needed: float, memory_gb: float, what: str) -> None:
    if not batch:
        raise ValueError(
            f"planning {what}: -gpu_memory_target {memory_gb:g} GB is too little, the smallest crop at batch 2 needs "
            f"about {(needed + 0.5e9) / 0.9e9:.1f} GB; raise the target or take a smaller encoder (-e vit_tiny_16)"
        )
