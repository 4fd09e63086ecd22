"""The plan as a table: one line per decision with its reason, for the screen and for the plans file."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from nnssl.encoders.base import EncoderSpec
from nnssl.geometry import ScanSizes
from nnssl.networks import DECODERS
from nnssl.planners import reasons
from nnssl.planners.budgets import SMALLEST_STEPS, FinetunePlan, PretrainPlan
from nnssl.planners.crops import mean_padding
from nnssl.planners.intensity import IntensityChoice
from nnssl.planners.network import NetworkPlan
from nnssl.planners.pretrain_memory import assumed_views
from nnssl.recipe import Preset

WHY_WIDTH = 74


@dataclass(frozen=True)
class Decision:
    """One line of the table."""

    configuration: str  # "all", "3d_fullres" or "pretrain"
    what: str
    value: str
    why: str


def shared_decisions(spec: EncoderSpec, intensity: IntensityChoice, *, cases: int, bad_cases: int) -> list[Decision]:
    """Decisions that hold for both configurations."""
    low, high = spec.intensity.encoder_range
    stored = "no stock scheme takes percentiles of the whole image: predict with nnssl_predict"
    if spec.intensity.kind == "window":
        stored = "written as nnU-Net's CTNormalization, so that stock nnUNetv2_predict agrees"
    rows = [
        Decision("all", "cases", str(cases), f"usable; {bad_cases} bad ones are left out"),
        Decision("all", "encoder", spec.name, reasons.about_encoder(spec)),
        Decision("all", "axes", "X Y Z of RAS", "every scan is reoriented when read: file axes do not matter"),
        Decision("all", "intensity", str(spec.intensity), f"{intensity.why}; {stored}"),
        Decision(
            "all", "stored range", "[0, 1]", f"0 is background and padding; the network maps it to [{low:g}, {high:g}]"
        ),
    ]
    if intensity.encoder is not None:
        why = "what the encoder saw in pretraining; nnssl_train accepts this difference"
        rows.insert(4, Decision("all", "encoder's intensity", str(intensity.encoder), why))
    return rows


def finetune_decisions(
    plan: FinetunePlan, sizes: ScanSizes, spec: EncoderSpec, recipe: Preset | None = None
) -> list[Decision]:
    """Decisions of 3d_fullres."""
    geometry, chosen = plan.geometry, plan.recipe
    iterations = chosen.epochs * chosen.iterations_per_epoch
    length = f"{chosen.epochs} epochs of {chosen.iterations_per_epoch}"
    if recipe and recipe.epoch_is_pass:
        length += " (one pass over the training cases of a fold)"
    memory = f"about {plan.memory_gb:.1f} GB"
    rows = [
        ("spacing [mm]", reasons.numbers(geometry.spacing_mm), reasons.of_spacing(geometry, sizes, spec, recipe)),
        (
            "median scan [voxels]",
            reasons.numbers(geometry.median_shape),
            f"at this spacing, after cropping to nonzero{reasons.growth(geometry.refined)}",
        ),
        ("crop [voxels]", reasons.by(geometry.crop), reasons.of_crop(plan, spec, recipe)),
        (f"{reasons.units(spec)}s per crop", str(geometry.tokens), reasons.token_grid(geometry, spec)),
        (
            "padding",
            f"{geometry.padding:.1%}",
            f"share of the crop outside the median scan; averaged over all scans {mean_padding(sizes, geometry):.1%}",
        ),
        ("batch", str(plan.batch_size), f"{reasons.of_batch(plan, recipe)}; {memory}"),
        (
            "iterations",
            f"{iterations:,}",
            f"recipe: {length}{reasons.stopping(plan)}" if recipe else f"3DINO's: {length}",
        ),
    ]
    if recipe:
        rows += [
            ("learning rate", f"{chosen.lr:g}", f"recipe: {recipe.source}; weight decay {chosen.weight_decay:g}"),
            ("loss, sampling", f"{chosen.loss}, {chosen.sampling}", reasons.of_loss(recipe, plan.network)),
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
    if network.input_channels > 1 or network.channels == "reinit":
        rows.append(("image channels", network.channels, reasons.of_channels(network, channels)))
    if network.adapter_width is not None:
        rows.insert(1, ("adapter width", str(network.adapter_width), "min(256, ViT width / 2); paper 256"))
    return [Decision("3d_fullres", *row) for row in rows]


def pretrain_decisions(plan: PretrainPlan, spec: EncoderSpec) -> list[Decision]:
    """Decisions of pretrain."""
    geometry, recipe, length = plan.geometry, plan.recipe, plan.length
    finer = tuple(1 / factor for factor in geometry.coarsened)
    bounded = " (bounded)" if recipe.steps in (SMALLEST_STEPS, length.most_steps) else ""
    rows = [
        ("data sets", ", ".join(plan.datasets), f"planned once over their union: {plan.images} images"),
        ("storage [mm]", reasons.numbers(geometry.spacing_mm), reasons.of_storage(plan)),
        ("median scan [voxels]", reasons.numbers(geometry.median_shape), f"as stored{reasons.growth(finer)}"),
        ("global crop [voxels]", reasons.by(geometry.global_crop), reasons.of_global_crop(plan, spec)),
        (
            "local crop [voxels]",
            reasons.by(geometry.local_crop),
            f"half per side (3DINO 96/48), {reasons.count(geometry.local_tokens, spec)}; for tasks with local views",
        ),
        (
            "batch",
            str(recipe.batch_size),
            f"largest that fits, at most one draw per image; about {plan.memory_gb:.1f} GB, counted for "
            f"{assumed_views(spec)}",
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
    first, *rest = textwrap.wrap(row.why, WHY_WIDTH) or [""]
    indent = " " * (sum(widths) + 6)
    return "\n".join(["  ".join((*cells, first)), *(indent + line for line in rest)])
