"""Why the plan is as it is: one line per decision, for the screen and for the plans file."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from nnssl.encoders.base import EncoderSpec
from nnssl.geometry import ScanSizes
from nnssl.networks import DECODERS
from nnssl.planners.budgets import FINETUNE_BATCH, SMALLEST_STEPS, FinetunePlan, PretrainPlan
from nnssl.planners.crops import TOKENS_WANTED, FinetuneCrop, mean_padding, nnunet_spacing
from nnssl.planners.network import NetworkPlan
from nnssl.recipe import Preset

WHY_WIDTH = 74


@dataclass(frozen=True)
class Decision:
    """One line of the table."""

    configuration: str  # "all", "3d_fullres" or "pretrain"
    what: str
    value: str
    why: str


def shared_decisions(spec: EncoderSpec, intensity_source: str, *, cases: int, bad_cases: int) -> list[Decision]:
    """Decisions that hold for both configurations."""
    low, high = spec.intensity.encoder_range
    stored = "no stock scheme takes percentiles of the whole image: predict with nnssl_predict"
    if spec.intensity.kind == "window":
        stored = "written as nnU-Net's CTNormalization, so that stock nnUNetv2_predict agrees"
    return [
        Decision("all", "cases", str(cases), f"usable; {bad_cases} bad ones are left out"),
        Decision("all", "encoder", spec.name, _about(spec)),
        Decision("all", "axes", "X Y Z of RAS", "every scan is reoriented when read: file axes do not matter"),
        Decision("all", "intensity", str(spec.intensity), f"{intensity_source}; {stored}"),
        Decision(
            "all", "stored range", "[0, 1]", f"0 is background and padding; the network maps it to [{low:g}, {high:g}]"
        ),
    ]


def finetune_decisions(
    plan: FinetunePlan, sizes: ScanSizes, spec: EncoderSpec, recipe: Preset | None = None
) -> list[Decision]:
    """Decisions of 3d_fullres."""
    geometry, chosen = plan.geometry, plan.recipe
    iterations = chosen.epochs * chosen.iterations_per_epoch
    length = f"{chosen.epochs} epochs of {chosen.iterations_per_epoch}"
    memory = f"about {plan.memory_gb:.1f} GB"
    rows = [
        ("spacing [mm]", _numbers(geometry.spacing_mm), _why_spacing(geometry, sizes, spec, recipe)),
        ("median scan [voxels]", _numbers(geometry.median_shape), "at this spacing, after cropping to nonzero"),
        ("crop [voxels]", _sides(geometry.crop), _why_crop(plan, spec, recipe)),
        (f"{_units(spec)}s per crop", str(geometry.tokens), _token_grid(geometry, spec)),
        (
            "padding",
            f"{geometry.padding:.1%}",
            f"share of the crop outside the median scan; averaged over all scans {mean_padding(sizes, geometry):.1%}",
        ),
        ("batch", str(plan.batch_size), f"{_why_batch(plan, recipe)}; {memory}"),
        (
            "iterations",
            f"{iterations:,}",
            f"recipe: {length}{_stopping(plan)}" if recipe else f"the paper's: {length}",
        ),
    ]
    if recipe:
        rows += [
            ("learning rate", f"{chosen.lr:g}", f"recipe: {recipe.source}; weight decay {chosen.weight_decay:g}"),
            ("loss, sampling", f"{chosen.loss}, {chosen.sampling}", _why_loss(recipe, plan.network)),
        ]
    return [Decision("3d_fullres", *row) for row in rows]


def network_decisions(
    network: NetworkPlan, decoder: str | None, channels: str | None, recipe: Preset | None
) -> list[Decision]:
    """Decisions on the segmentor; `decoder` and `channels` as given on the command line."""
    family = f"the default on {network.encoder.family} encoders"
    norm = network.norm or DECODERS[network.decoder].norm
    rows = [
        ("decoder", network.decoder, "-decoder" if decoder else "recipe" if recipe else family),
        ("decoder norm", norm, "recipe" if recipe and recipe.norm else "the decoder's default"),
        (
            "encoder weights",
            "frozen" if network.frozen else "trained",
            f"{'recipe' if recipe else 'default'}; gradients {'pass' if network.keeps_activations else 'do not pass'} "
            "through it",
        ),
    ]
    if network.input_channels > 1:
        rows.append(("image channels", network.channels, _why_channels(network, channels)))
    if network.adapter_width is not None:
        rows.insert(1, ("adapter width", str(network.adapter_width), "min(256, ViT width / 2); paper 256"))
    return [Decision("3d_fullres", *row) for row in rows]


def pretrain_decisions(plan: PretrainPlan, spec: EncoderSpec) -> list[Decision]:
    """Decisions of pretrain."""
    geometry, recipe, length = plan.geometry, plan.recipe, plan.length
    bounded = " (bounded)" if recipe.steps in (SMALLEST_STEPS, length.most_steps) else ""
    rows = [
        ("data sets", ", ".join(plan.datasets), f"planned once over their union: {plan.images} images"),
        ("storage [mm]", _numbers(geometry.spacing_mm), _why_storage(plan)),
        ("median scan [voxels]", _numbers(geometry.median_shape), "as stored"),
        ("global crop [voxels]", _sides(geometry.global_crop), _why_global_crop(plan, spec)),
        (
            "local crop [voxels]",
            _sides(geometry.local_crop),
            f"half per side (3DINO 96/48), {_count(geometry.local_tokens, spec)}",
        ),
        (
            "batch",
            str(recipe.batch_size),
            f"largest that fits, at most one draw per image; about {plan.memory_gb:.1f} GB",
        ),
        (
            "steps",
            f"{recipe.steps:,}",
            f"{length.passes} draws per image as in {length.source}, within {SMALLEST_STEPS:,}-{length.most_steps:,}"
            f"{bounded}",
        ),
    ]
    return [Decision("pretrain", *row) for row in rows]


def decision_table(title: str, decisions: Sequence[Decision]) -> str:
    """The decisions as an aligned text table; long reasons wrap."""
    heads = Decision("configuration", "what", "value", "why")
    widths = [max(len(getattr(row, key)) for row in (heads, *decisions)) for key in ("configuration", "what", "value")]
    lines = [title, _row(heads, widths, heads.configuration), "  ".join("-" * width for width in (*widths, WHY_WIDTH))]
    previous = ""
    for row in decisions:
        lines.append(_row(row, widths, row.configuration if row.configuration != previous else ""))
        previous = row.configuration
    return "\n".join(lines)


def _row(row: Decision, widths: Sequence[int], configuration: str) -> str:
    cells = [text.ljust(width) for text, width in zip((configuration, row.what, row.value), widths, strict=True)]
    reasons = textwrap.wrap(row.why, WHY_WIDTH) or [""]
    indent = " " * (sum(widths) + 6)
    return "\n".join(["  ".join((*cells, reasons[0])), *(indent + reason for reason in reasons[1:])])


def _about(spec: EncoderSpec) -> str:
    strides = f"strides {spec.strides[0]} to {spec.strides[-1]}" if spec.is_pyramid else f"patch {spec.strides[0]}"
    options = ", ".join(f"{key} {value}" for key, value in spec.options.items())
    return (
        f"{spec.family} of {spec.depth} blocks, {strides}{f'; differs from its name in {options}' if options else ''}"
    )


def _why_spacing(geometry: FinetuneCrop, sizes: ScanSizes, spec: EncoderSpec, recipe: Preset | None) -> str:
    refined, rule = geometry.refined, geometry.rule
    base = _numbers(nnunet_spacing(sizes).tolist())
    if rule == "flag":
        return "as given with -overwrite_target_spacing"
    if rule == "recipe":
        return f"recipe; nnU-Net's rule would be {base}"
    if rule == "encoder":
        return f"what {spec.name} was made for; nnU-Net's rule would be {base}"
    prefix = ""
    if rule == "small":
        wish = recipe.spacing_mm if recipe and recipe.spacing_mm else spec.native_spacing or ()
        prefix = f"the median scan is shorter than half of the crop at the {_numbers(wish)} wanted; "
    if max(refined) < 1.001:
        return f"{prefix}nnU-Net's rule (median, anisotropy rule)"
    if max(refined) > 1.001 * min(refined) and min(refined) < 1.001:
        fitted = f"the coarse axis refined {max(refined):.2f}x so that whole tokens cover it"
        return f"{prefix}nnU-Net's rule ({base}); {fitted}"
    factor = _numbers(refined) if max(refined) > 1.001 * min(refined) else f"{refined[0]:.2f}"
    wanted = f"the median scan should hold {TOKENS_WANTED} tokens or more"
    return f"{prefix}nnU-Net's rule ({base}) refined {factor}x: {wanted}"


def _why_crop(plan: FinetunePlan, spec: EncoderSpec, recipe: Preset | None) -> str:
    if plan.geometry.rule in ("encoder", "recipe") or (plan.geometry.rule == "flag" and spec.native_spacing):
        whose = "the recipe's" if recipe and recipe.crop else "the encoder's"
        full = recipe.crop if recipe and recipe.crop else spec.native_crop
        limit = f"{whose} {_sides(full)}, clipped to multiples of {spec.crop_multiple} inside the median scan"
        return f"{limit}; cut by the memory target" if plan.cut_by_memory else limit
    limit = "whole patches inside the median scan" if not spec.is_pyramid else "whole cells inside the median scan"
    if plan.cut_by_memory:
        return f"{limit}; cut below the encoder's {_count(plan.token_budget, spec)} by the memory target"
    return f"{limit}, at most the {_count(plan.token_budget, spec)} of the encoder's {_sides(spec.native_crop)}"


def _why_batch(plan: FinetunePlan, recipe: Preset | None) -> str:
    if recipe is None:
        return f"{FINETUNE_BATCH[0]} to {FINETUNE_BATCH[1]} (3DINO 8), at most 5 % of the data"
    lowered = f" {recipe.batch_size}, lowered by the memory target" if plan.batch_size < recipe.batch_size else ""
    return f"recipe{lowered}"


def _why_loss(recipe: Preset, network: NetworkPlan) -> str:
    labels = network.num_classes - 1
    return f"recipe, for {'one foreground label' if labels == 1 else f'{labels} foreground labels'}"


def _stopping(plan: FinetunePlan) -> str:
    patience = plan.recipe.early_stopping
    return f" at most; ends after {patience} epochs without a better EMA Dice" if patience else ""


def _why_channels(network: NetworkPlan, given: str | None) -> str:
    reasons = {
        "mix": "the encoder reads one channel at a time, 1x1x1 convolutions merge them (3DINO)",
        "replicate": "the encoder reads all channels at once, its patch weights are replicated and scaled",
        "reinit": "the encoder reads all channels at once through a new, trained patch embedding",
    }
    return f"{'-channels' if given else f'default on {network.encoder.family}'}: {reasons[network.channels]}"


def _why_storage(plan: PretrainPlan) -> str:
    rule = plan.geometry.rule
    if rule == "encoder":
        return "the encoder's spacing: views are crops that are not resized"
    if rule == "small":
        return "as 3d_fullres: the median scan is too small at the encoder's spacing; views are not resized"
    if max(plan.geometry.coarsened) > 1.001:
        return "coarser than nnU-Net's, so that the median scan is at most two global crops wide"
    return "nnU-Net's rule over the union"


def _why_global_crop(plan: PretrainPlan, spec: EncoderSpec) -> str:
    cut = ", cut by the memory target" if plan.cut_by_memory else ""
    if plan.geometry.rule == "encoder":
        return f"the encoder's {_sides(spec.native_crop)}, clipped to the median scan{cut}"
    if plan.geometry.rule == "small":
        return f"inside the median scan, {_count(plan.geometry.global_tokens, spec)} (budget {plan.token_budget}{cut})"
    tokens = f"{plan.geometry.global_tokens} tokens (budget {plan.token_budget}{cut})"
    return f"proportions of the median scan, {tokens}; views are resized to it: no padding"


def _token_grid(geometry: FinetuneCrop, spec: EncoderSpec) -> str:
    grid = f"{_sides([side // geometry.patch for side in geometry.crop])} of {geometry.patch}^3 voxels"
    return f"{grid}; {geometry.centres} {_units(spec)} centres lie inside the median scan"


def _count(number: int, spec: EncoderSpec) -> str:
    return f"{number} {_units(spec)}{'' if number == 1 else 's'}"


def _units(spec: EncoderSpec) -> str:
    return "cell" if spec.is_pyramid else "token"


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{float(value):.3g}" for value in values)


def _sides(values: Sequence[int]) -> str:
    return "x".join(str(int(value)) for value in values)
