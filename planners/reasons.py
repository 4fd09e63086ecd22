"""The words behind each decision of the table."""

import math
from collections.abc import Sequence

from nnssl.encoders.base import EncoderSpec
from nnssl.geometry import ScanSizes
from nnssl.planners.budgets import FINETUNE_BATCH, FinetunePlan, PretrainPlan
from nnssl.planners.crops import TOKENS_WANTED, FinetuneCrop, nnunet_spacing
from nnssl.planners.network import NetworkPlan
from nnssl.recipe import Preset

TOO_SMALL = "the median scan is shorter than half of the crop"
MUCH_GROWTH = 8  # times the voxels of nnU-Net's spacing: worth a word


def about_encoder(spec: EncoderSpec) -> str:
    """Family, depth, strides and options."""
    strides = f"strides {spec.strides[0]} to {spec.strides[-1]}" if spec.is_pyramid else f"patch {spec.strides[0]}"
    options = ", ".join(f"{key} {value}" for key, value in spec.options.items())
    return (
        f"{spec.family} of {spec.depth} blocks, {strides}{f'; differs from its name in {options}' if options else ''}"
    )


def of_spacing(geometry: FinetuneCrop, sizes: ScanSizes, spec: EncoderSpec, recipe: Preset | None) -> str:
    """Why 3d_fullres has its spacing."""
    nnunet = numbers(nnunet_spacing(sizes).tolist())
    if geometry.rule == "flag":
        return "as given with -overwrite_target_spacing"
    if geometry.rule == "recipe":
        return f"recipe; nnU-Net's rule would be {nnunet}"
    if geometry.rule == "encoder":
        return f"what {spec.name} was made for; nnU-Net's rule would be {nnunet}"
    if geometry.rule == "small":
        wish = (recipe.spacing_mm if recipe else None) or spec.native_spacing or geometry.spacing_mm
        return f"{_of_small_scans(geometry, wish, nnunet)}: at the {numbers(wish)} wanted {TOO_SMALL}"
    return _of_refinement(geometry.refined, nnunet)


def of_crop(plan: FinetunePlan, spec: EncoderSpec, recipe: Preset | None) -> str:
    """Why 3d_fullres has its crop."""
    whose, full = ("recipe", recipe.crop) if recipe and recipe.crop else ("encoder", spec.native_crop)
    if plan.geometry.rule == "tokens" or not (spec.native_spacing or whose == "recipe"):
        limit = "whole tokens inside the median scan"
    else:
        limit = f"the multiples of {spec.crop_multiple} nearest to the median scan"
        if all(side <= most for side, most in zip(plan.geometry.crop, full, strict=True)):
            cut = "; cut by the memory target" if plan.cut_by_memory else ""
            return f"{limit}, at most the {whose}'s {by(full)}{cut}"
    if plan.cut_by_memory:
        return f"{limit}; cut below the {whose}'s {count(plan.token_budget, spec)} by the memory target"
    return f"{limit}, at most the {count(plan.token_budget, spec)} of the {whose}'s {by(full)}"


def of_batch(plan: FinetunePlan, recipe: Preset | None) -> str:
    """Why 3d_fullres has its batch."""
    if recipe is None:
        return f"{FINETUNE_BATCH[0]} to {FINETUNE_BATCH[1]} (3DINO 8), at most 5 % of the data"
    lowered = f" {recipe.batch_size}, lowered by the memory target" if plan.batch_size < recipe.batch_size else ""
    return f"recipe{lowered}"


def of_loss(recipe: Preset, network: NetworkPlan) -> str:
    """Why 3d_fullres has its loss and sampling."""
    labels = network.num_classes - 1
    return f"recipe, for {'one foreground label' if labels == 1 else f'{labels} foreground labels'}"


def of_channels(network: NetworkPlan, given: str | None) -> str:
    """Why image channels enter as they do."""
    reasons = {
        "mix": "the encoder reads one channel at a time, 1x1x1 convolutions merge them (3DINO)",
        "replicate": "the encoder reads all channels at once, its patch weights are replicated and scaled",
        "reinit": "the encoder reads all channels at once through a new, trained patch embedding",
    }
    return f"{'-channels' if given else f'default on {network.encoder.family}'}: {reasons[network.channels]}"


def of_storage(plan: PretrainPlan) -> str:
    """Why volumes are stored for pretraining at their spacing."""
    if plan.geometry.rule == "encoder":
        return "the encoder's spacing: views are crops that are not resized"
    if plan.geometry.rule == "small":
        return f"by 3d_fullres's rule, because at the encoder's spacing {TOO_SMALL}; views are not resized"
    limit = plan.geometry.limit
    most = "" if limit is None else f"; each scan at most {by(limit.voxels)} voxels, what 3DINO's smallest crops show"
    return f"nnU-Net's rule over the union{most}; float16"


def of_global_crop(plan: PretrainPlan, spec: EncoderSpec) -> str:
    """Why global views have their size."""
    cut = ", cut by the memory target" if plan.cut_by_memory else ""
    tokens = f"{count(plan.geometry.global_tokens, spec)} (budget {plan.token_budget}{cut})"
    nearest = f"the multiples of {spec.crop_multiple} nearest to the median scan"
    if plan.geometry.rule == "encoder":
        return f"{nearest}, at most the encoder's {by(spec.native_crop)}{cut}"
    if plan.geometry.rule == "small":
        return f"{nearest}, {tokens}"
    return f"proportions of the median scan, {tokens}; views are resized to it: no padding"


def token_grid(geometry: FinetuneCrop, spec: EncoderSpec) -> str:
    """The grid of a crop, and how much of it lies in the scan."""
    grid = f"{by([side // geometry.patch for side in geometry.crop])} of {geometry.patch}^3 voxels"
    return f"{grid}; {geometry.centres} {units(spec)} centres lie inside the median scan"


def stopping(plan: FinetunePlan) -> str:
    """What ends a training early."""
    patience = plan.recipe.early_stopping
    return f" at most; ends after {patience} epochs without a better EMA Dice" if patience else ""


def growth(refined: Sequence[float]) -> str:
    """A word on volumes that hold many times the voxels that nnU-Net would store; `refined` is per axis."""
    times = math.prod(refined)
    return f"; {times:.0f} times the voxels of nnU-Net's spacing" if times >= MUCH_GROWTH else ""


def count(number: int, spec: EncoderSpec) -> str:
    """A number of tokens or cells."""
    return f"{number} {units(spec)}{'' if number == 1 else 's'}"


def units(spec: EncoderSpec) -> str:
    """What crops are counted in: tokens, or the coarsest cells of a pyramid."""
    return "cell" if spec.is_pyramid else "token"


def numbers(values: Sequence[float]) -> str:
    """Three significant digits each."""
    return " ".join(f"{float(value):.3g}" for value in values)


def by(values: Sequence[int]) -> str:
    """Sides of a crop or grid."""
    return "x".join(str(int(value)) for value in values)


def _of_small_scans(geometry: FinetuneCrop, wish: Sequence[float], nnunet: str) -> str:
    """Where the spacing of small scans lies between the wish and nnU-Net's."""
    if all(abs(ours / wanted - 1) < 0.001 for ours, wanted in zip(geometry.spacing_mm, wish, strict=True)):
        return f"kept, because nnU-Net's rule ({nnunet}) is no finer along the short axis"
    if all(abs(factor - 1) < 0.001 for factor in geometry.refined):
        return f"nnU-Net's rule ({nnunet})"
    if min(geometry.refined) > 0.999:
        return f"nnU-Net's rule ({nnunet}) or finer"
    return f"finer, towards nnU-Net's rule ({nnunet})"


def _of_refinement(refined: Sequence[float], nnunet: str) -> str:
    """The token rule's reasons."""
    if max(refined) < 1.001:
        return "nnU-Net's rule (median, anisotropy rule)"
    if max(refined) > 1.001 * min(refined) and min(refined) < 1.001:
        fitted = f"the coarse axis refined {max(refined):.2f}x so that whole tokens cover it"
        return f"nnU-Net's rule ({nnunet}); {fitted}"
    factor = numbers(refined) if max(refined) > 1.001 * min(refined) else f"{refined[0]:.2f}"
    return f"nnU-Net's rule ({nnunet}) refined {factor}x: the median scan should hold {TOKENS_WANTED} tokens or more"
