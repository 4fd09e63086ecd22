"""Why the plan is as it is: one line per decision, for the screen and for the plans file."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from nnssl.encoders.base import EncoderSpec
from nnssl.geometry import ScanSizes
from nnssl.planners.budgets import PASSES, STEPS, FinetunePlan, PretrainPlan
from nnssl.planners.crops import TOKENS_WANTED, mean_padding, nnunet_spacing

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
        Decision("all", "axes", "X Y Z of RAS", "every scan is reoriented when read: file axes do not matter"),
        Decision("all", "intensity", str(spec.intensity), f"{intensity_source}; {stored}"),
        Decision(
            "all", "stored range", "[0, 1]", f"0 is background and padding; the network maps it to [{low:g}, {high:g}]"
        ),
    ]


def finetune_decisions(plan: FinetunePlan, sizes: ScanSizes, spec: EncoderSpec) -> list[Decision]:
    """Decisions of 3d_fullres."""
    geometry, recipe = plan.geometry, plan.recipe
    iterations = recipe.epochs * recipe.iterations_per_epoch
    rows = [
        ("spacing [mm]", _numbers(geometry.spacing_mm), _why_spacing(plan, sizes)),
        ("median scan [voxels]", _numbers(geometry.median_shape), "at this spacing, after cropping to nonzero"),
        ("crop [voxels]", _sides(geometry.crop), _why_crop(plan, spec)),
        (
            "tokens per crop",
            str(geometry.tokens),
            f"{_sides([side // geometry.patch for side in geometry.crop])} of {geometry.patch}^3 voxels; "
            f"{geometry.centres} token centres lie inside the median scan",
        ),
        (
            "padding",
            f"{geometry.padding:.1%}",
            f"share of the crop outside the median scan; averaged over all scans {mean_padding(sizes, geometry):.1%}",
        ),
        ("batch", str(plan.batch_size), f"2 to 8 (paper 8), at most 5 % of the data; about {plan.memory_gb:.1f} GB"),
        ("adapter width", str(plan.adapter_width), "min(256, ViT width / 2); paper 256"),
        ("iterations", f"{iterations:,}", f"the paper's: {recipe.epochs} epochs of {recipe.iterations_per_epoch}"),
    ]
    return [Decision("3d_fullres", *row) for row in rows]


def pretrain_decisions(plan: PretrainPlan) -> list[Decision]:
    """Decisions of pretrain."""
    geometry, recipe = plan.geometry, plan.recipe
    coarsened = max(geometry.coarsened) > 1.001
    storage = "coarser than nnU-Net's, so that the median scan is at most two global crops wide"
    bounded = " (bounded)" if recipe.steps in STEPS else ""
    rows = [
        ("data sets", ", ".join(plan.datasets), f"planned once over their union: {plan.images} images"),
        ("storage [mm]", _numbers(geometry.spacing_mm), storage if coarsened else "nnU-Net's rule over the union"),
        ("median scan [voxels]", _numbers(geometry.median_shape), "as stored"),
        (
            "global crop [voxels]",
            _sides(geometry.global_crop),
            f"proportions of the median scan, {geometry.global_tokens} tokens (budget {plan.token_budget}"
            f"{', cut by the memory target' if plan.cut_by_memory else ''}); views are resized to it: no padding",
        ),
        (
            "local crop [voxels]",
            _sides(geometry.local_crop),
            f"half per side (paper 96/48), {geometry.local_tokens} tokens",
        ),
        (
            "batch",
            str(recipe.batch_size),
            f"largest that fits, at most one draw per image; about {plan.memory_gb:.1f} GB",
        ),
        (
            "steps",
            f"{recipe.steps:,}",
            f"{PASSES} draws per image as in the paper, within {STEPS[0]:,}-{STEPS[1]:,}{bounded}",
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


def _why_spacing(plan: FinetunePlan, sizes: ScanSizes) -> str:
    if plan.spacing_given:
        return "as given with -overwrite_target_spacing"
    refined = plan.geometry.refined
    base = _numbers(nnunet_spacing(sizes).tolist())
    if max(refined) < 1.001:
        return "nnU-Net's rule (median, anisotropy rule)"
    if max(refined) > 1.001 * min(refined) and min(refined) < 1.001:
        return f"nnU-Net's rule ({base}); the coarse axis refined {max(refined):.2f}x so that whole tokens cover it"
    factor = _numbers(refined) if max(refined) > 1.001 * min(refined) else f"{refined[0]:.2f}"
    return f"nnU-Net's rule ({base}) refined {factor}x: the median scan should hold {TOKENS_WANTED} tokens or more"


def _why_crop(plan: FinetunePlan, spec: EncoderSpec) -> str:
    limit = "whole patches inside the median scan"
    if plan.cut_by_memory:
        return f"{limit}; cut below the encoder's {plan.token_budget} tokens by the memory target"
    return f"{limit}, at most the {plan.token_budget} tokens of the encoder's {_sides(spec.native_crop)}"


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{float(value):.3g}" for value in values)


def _sides(values: Sequence[int]) -> str:
    return "x".join(str(int(value)) for value in values)
