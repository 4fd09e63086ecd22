"""Crop, batch and length of training that fit a memory target: for fine-tuning and for pretraining."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from nnssl.encoders.base import EncoderSpec
from nnssl.geometry import ScanSizes, token_count
from nnssl.planners.crops import FinetuneCrop, PretrainCrop, Spacing, finetune_crop, pretrain_crop
from nnssl.planners.memory import finetune_bytes, target_for, usable_bytes
from nnssl.planners.native_crops import Wanted, native_pretrain_crop, smallest_cells, wanted_crop
from nnssl.planners.network import NetworkPlan
from nnssl.planners.pretrain_memory import pretrain_bytes
from nnssl.planners.storage import stored_limit, threedino_views
from nnssl.recipe import FineTuneRecipe, Preset, PretrainRecipe

FINETUNE_BATCH = (2, 8)  # nnU-Net's smallest; 3DINO's
PRETRAIN_BATCH = (2, 512)  # two, or KoLeo's nearest neighbour does not exist; 3DINO's
COVERED_SHARE = 0.05  # nnU-Net: one batch shows at most 5 % of the data set
FOLDS = 5  # of nnU-Net's cross-validation
SMALLEST_STEPS = 1_000  # below, warm-up and schedules are too short
SMALLEST_BUDGET, CELL_OF_BUDGET = 8, 16  # tokens of up to 16 voxels; larger cells: as few as work


@dataclass(frozen=True)
class Length:
    """How long a paper pretrained."""

    passes: int  # draws of every image
    most_steps: int
    source: str


LENGTHS = {
    "vit": Length(648, 125_000, "3DINO"),  # 64 M draws from 98,815 images
    "swin": Length(500, 867_500, "SMIT"),  # 500 epochs; of 10,412 scans at its code's batch of 6
}


@dataclass(frozen=True)
class FinetunePlan:
    """3d_fullres: network, geometry, batch and recipe."""

    network: NetworkPlan
    geometry: FinetuneCrop
    batch_size: int
    recipe: FineTuneRecipe
    memory_gb: float  # estimate
    token_budget: int  # of the encoder's or the recipe's crop
    cut_by_memory: bool


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
    length: Length


def length_of(spec: EncoderSpec) -> Length:
    """How long the encoder's own paper pretrained; 3DINO's where there is none."""
    return LENGTHS.get(spec.family, LENGTHS["vit"])


def native_tokens(spec: EncoderSpec) -> int:
    """Tokens (of a pyramid: cells) of the crop that the encoder was (or by default is) pretrained with."""
    return token_count([side // spec.crop_multiple for side in spec.native_crop])


def plan_finetune(
    network: NetworkPlan,
    sizes: ScanSizes,
    *,
    memory_gb: float,
    spacing_mm: Spacing | None = None,
    recipe: Preset | None = None,
) -> FinetunePlan:
    """Crop within the encoder's own token count, then the largest batch up to 8; memory lowers first batch, then crop.

    A recipe fixes spacing, crop and batch where it names them; only memory lowers them, and scans too small for them.

    Raises:
        ValueError: even the smallest crop does not fit; the message says how much is needed.
    """
    spec = network.encoder
    wanted = wanted_by(spec, spacing_mm, recipe)
    full = token_count([side // spec.crop_multiple for side in wanted.crop]) if wanted else native_tokens(spec)
    bounds = FINETUNE_BATCH if recipe is None else (FINETUNE_BATCH[0], recipe.batch_size)
    budget = full
    while True:
        geometry = _finetune_geometry(spec, sizes, budget, wanted=wanted, spacing_mm=spacing_mm)
        needed = _needs(bounds, lambda batch: finetune_bytes(network, geometry.crop, batch))  # noqa: B023
        batch = _largest_batch(needed, memory_gb)
        if batch or budget <= smallest_budget(spec):
            break
        budget = _less(budget, geometry.tokens, spec)
    _check_fits(batch, needed[bounds[0]], memory_gb, f"fine-tuning on {spec.name} with decoder {network.decoder}")
    if recipe is None:
        batch = max(bounds[0], min(batch, _covering_batch(sizes, geometry)))
    return FinetunePlan(
        network,
        geometry,
        batch,
        _finetune_recipe(recipe, network.num_classes - 1, len(sizes.shapes), batch),
        memory_gb=needed[batch] / 1e9,
        token_budget=full,
        cut_by_memory=budget < full,
    )


def _finetune_recipe(recipe: Preset | None, labels: int, cases: int, batch: int) -> FineTuneRecipe:
    if recipe is None:
        return FineTuneRecipe()
    training = math.ceil(cases * (FOLDS - 1) / FOLDS)
    return recipe.recipe_for(labels, training_cases=training, batch_size=batch)


def plan_pretrain(
    spec: EncoderSpec, sizes: ScanSizes, *, images: int, datasets: tuple[str, ...], memory_gb: float
) -> PretrainPlan:
    """Views within the encoder's token count, the largest batch that fits, and steps for the paper's passes."""
    wanted = wanted_by(spec, None, None)
    full = budget = native_tokens(spec)
    while True:
        geometry = pretrain_crop(sizes, spec.crop_multiple, budget)
        if wanted is not None:
            geometry = native_pretrain_crop(sizes, wanted, spec, budget)
        views = geometry.global_crop, geometry.local_crop
        needed = _needs(PRETRAIN_BATCH, lambda batch: pretrain_bytes(spec, *views, batch))  # noqa: B023
        batch = _largest_batch(needed, memory_gb)
        if batch or budget <= smallest_budget(spec):
            break
        budget = _less(budget, geometry.global_tokens, spec)
    _check_fits(batch, needed[PRETRAIN_BATCH[0]], memory_gb, f"pretraining {spec.name}")
    batch = max(PRETRAIN_BATCH[0], min(batch, images))
    length = length_of(spec)
    steps = min(max(math.ceil(length.passes * images / batch), SMALLEST_STEPS), length.most_steps)
    recipe = PretrainRecipe(
        global_crop=geometry.global_crop, local_crop=geometry.local_crop, steps=steps, batch_size=batch
    )
    memory = needed[batch] / 1e9
    return PretrainPlan(geometry, recipe, datasets, images, memory, full, budget < full, length)


def with_stored_views(plan: PretrainPlan, sides: Sequence[int] | None) -> PretrainPlan:
    """The plan with storage for cubic global and local views of other sides; None, or no limit: unchanged."""
    limit = plan.geometry.limit
    if sides is None or limit is None:
        return plan
    first, second = ((side, side, side) for side in sides)
    wider = stored_limit(threedino_views(first, second), limit.depth_axis)
    return replace(plan, geometry=replace(plan.geometry, limit=wider))


def wanted_by(spec: EncoderSpec, spacing_mm: Spacing | None, recipe: Preset | None) -> Wanted | None:
    """Spacing and crop that the command line, the recipe or the encoder asks for; None: the token rule decides."""
    crop = (recipe.crop if recipe else None) or spec.native_crop
    if recipe is not None and recipe.spacing_mm is not None:
        return Wanted(spacing_mm or recipe.spacing_mm, crop, "flag" if spacing_mm else "recipe")
    if spec.native_spacing is None:
        return None
    return Wanted(spacing_mm or spec.native_spacing, crop, "flag" if spacing_mm else "encoder")


def smallest_budget(spec: EncoderSpec) -> int:
    """Tokens below which no crop is cut for memory."""
    return SMALLEST_BUDGET if spec.crop_multiple <= CELL_OF_BUDGET else smallest_cells(spec)


def _finetune_geometry(
    spec: EncoderSpec, sizes: ScanSizes, budget: int, *, wanted: Wanted | None, spacing_mm: Spacing | None
) -> FinetuneCrop:
    if wanted is None:
        return finetune_crop(sizes, spec.crop_multiple, budget, spacing_mm=spacing_mm)
    return wanted_crop(sizes, wanted, spec, budget)


def _less(budget: int, used: int, spec: EncoderSpec) -> int:
    """A tenth fewer tokens, at least one fewer."""
    return max(smallest_budget(spec), int(min(budget, used) * 0.9))


def _covering_batch(sizes: ScanSizes, geometry: FinetuneCrop) -> int:
    """Crops that show 5 % of the voxels of all scans."""
    voxels = float(sizes.resampled(geometry.spacing_mm).prod(axis=1).sum())
    return round(COVERED_SHARE * voxels / math.prod(geometry.crop))


def _needs(bounds: tuple[int, int], needed: Callable[[int], float]) -> dict[int, float]:
    """Bytes by batch size; they grow linearly."""
    first, last = bounds
    start, per_crop = needed(first), needed(first + 1) - needed(first)
    return {batch: start + (batch - first) * per_crop for batch in range(first, last + 1)}


def _largest_batch(needed: dict[int, float], memory_gb: float) -> int:
    """The largest batch that fits, or 0."""
    return max((batch for batch, size in needed.items() if size <= usable_bytes(memory_gb)), default=0)


def _check_fits(batch: int, needed: float, memory_gb: float, what: str) -> None:
    if not batch:
        raise ValueError(
            f"planning {what}: -gpu_memory_target {memory_gb:g} GB is too little, the smallest crop at batch 2 needs "
            f"about {target_for(needed):.1f} GB; raise the target or take a smaller encoder (-e vit_tiny_16)"
        )
