"""`plan.html`: all that a plan decided, in words and pictures, in one file that asks nothing of any other machine.

It names no case and no path. Its pictures are slices of scans: share it as you would share those.
"""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from nnssl.paths import atomic_write, preprocessed_folder
from nnssl.planners import reasons
from nnssl.planners.encoder_planner import EncoderPlanner, plan_together
from nnssl.planners.explain import Decision
from nnssl.planners.glossary import CONFIGURATIONS, meaning
from nnssl.planners.plan_figures import (
    CROP_COLOUR,
    GLOBAL_COLOUR,
    LOCAL_COLOUR,
    Picture,
    example_slices,
    extent_histogram,
    shape_histogram,
    spacing_histogram,
)

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # a browser loads nothing else
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2733; max-width: 66rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid #ccd }
figure { margin: 1.2rem 0 } figure img { max-width: 100%; height: auto; border-radius: 4px }
figcaption { color: #456; font-size: .92rem }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; vertical-align: top; padding: .45rem .6rem }
tr { border-bottom: 1px solid #dde } td.value { font-weight: 600; white-space: pre-wrap }
.meaning { color: #567; font-size: .9rem; display: block }
.swatch { display: inline-block; width: 1.1rem; height: .7rem; background: #222 }
.note { background: #f1f4f8; padding: .6rem .9rem; border-radius: 4px }
"""


def write_plan_page(planner: EncoderPlanner, estimate: Sequence[Decision] = ()) -> Path:
    """Write the page of a planner that has planned, beside its plans file.

    Args:
        planner: after `plan_experiment`.
        estimate: rows on hours, disk and memory, if they were measured.
    """
    path = preprocessed_folder() / planner.raw.name / f"{planner.plans_identifier}.html"
    with atomic_write(path) as temporary:
        temporary.write_text(plan_page(planner, estimate), encoding="utf-8")
    return path


def plan_page(planner: EncoderPlanner, estimate: Sequence[Decision] = ()) -> str:
    """The page as HTML."""
    finetune, pretrain = planner.plan_finetune(), planner.pretrain_plan or plan_together([planner])
    title = f"Plan of {planner.raw.name} for {planner.spec.name}"
    sizes = planner.sizes
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(text)}</p>" for text in in_short(planner)),
        "<h2>The scans</h2>",
        *map(_figure, (spacing_histogram(sizes, finetune, pretrain), shape_histogram(sizes))),
        _figure(extent_histogram(sizes, finetune)),
        "<h2>Crops on scans</h2>",
        _legend(),
        *map(_figure, example_slices(planner.raw, planner.fingerprint, finetune, pretrain)),
        *(_section(name, planner.decisions) for name in CONFIGURATIONS),
    ]
    if estimate:
        parts += ["<h2>What it will take on this machine</h2>", _table(estimate)]
    note = "Written by nnssl_plan_and_preprocess. The pictures are slices of scans: share this page as you share those."
    body = "\n".join([*parts, f'<p class="note">{escape(note)}</p>'])
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def in_short(planner: EncoderPlanner) -> list[str]:
    """The plan in three paragraphs."""
    finetune, pretrain = planner.plan_finetune(), planner.pretrain_plan or plan_together([planner])
    crop, views, sizes = finetune.geometry, pretrain.geometry, planner.sizes
    extent = sizes.median_extent_mm().tolist()
    cases, left_out = len(sizes.shapes), len(planner.fingerprint.bad_cases)
    scans = f"{cases} scan{'' if cases == 1 else 's'}"
    several = f" {planner.raw.channels} image channels each." if planner.raw.channels > 1 else ""
    shares = [
        min(1.0, side * size / whole) for side, size, whole in zip(crop.crop, crop.spacing_mm, extent, strict=True)
    ]
    return [
        f"{scans} could be used and {left_out} were left out.{several} The median scan is {reasons.numbers(extent)} mm "
        "(X Y Z) without empty borders.",
        f"Fine-tuning: scans are resampled to {reasons.numbers(crop.spacing_mm)} mm, so that the median scan has "
        f"{reasons.numbers(crop.median_shape)} voxels. A crop of {reasons.by(crop.crop)} voxels shows "
        f"{', '.join(f'{share:.0%}' for share in shares)} of it along X, Y and Z. {finetune.batch_size} crops are "
        f"learnt from at once, which needs about {finetune.memory_gb:.1f} GB.",
        f"Pretraining: {pretrain.images} images of {len(pretrain.datasets)} data set"
        f"{'' if len(pretrain.datasets) == 1 else 's'} are stored, the median scan with "
        f"{reasons.numbers(views.median_shape)} voxels. Views have {reasons.by(views.global_crop)} and "
        f"{reasons.by(views.local_crop)} voxels; "
        f"{pretrain.recipe.steps:,} steps of {pretrain.recipe.batch_size} volumes need about {pretrain.memory_gb:.1f} "
        "GB.",
    ]


def _section(configuration: str, decisions: Sequence[Decision]) -> str:
    heading, about = CONFIGURATIONS[configuration]
    rows = [row for row in decisions if row.configuration == configuration]
    return f"<h2>{escape(heading)}</h2>\n<p>{escape(about)}</p>\n{_table(rows)}"


def _table(rows: Sequence[Decision]) -> str:
    lines = ["<table>", "<tr><th>decision</th><th>value</th><th>why</th></tr>"]
    for row in rows:
        plain = meaning(row.what)
        told = f'<span class="meaning">{escape(plain)}</span>' if plain else ""
        lines.append(
            f'<tr><td>{escape(row.what)}{told}</td><td class="value">{escape(row.value)}</td>'
            f"<td>{escape(row.why)}</td></tr>"
        )
    return "\n".join([*lines, "</table>"])


def _legend() -> str:
    lines = (
        (CROP_COLOUR, "solid", "crop of 3d_fullres"),
        (GLOBAL_COLOUR, "dashed", "global crop of pretrain"),
        (LOCAL_COLOUR, "dotted", "local crop of pretrain"),
    )
    swatches = [
        f'<span class="swatch" style="border: 3px {style} {colour}"></span> {what}' for colour, style, what in lines
    ]
    where = "Crops are drawn in the middle; training cuts them anywhere. Patient right is at the left."
    return f"<p>{' &nbsp; '.join(swatches)}<br>{where}</p>"


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    return (
        f'<figure><img alt="{escape(picture.instead)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )
