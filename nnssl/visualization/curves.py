"""Training curves as one picture: a small panel per logged number or family of numbers."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnssl.paths import atomic_write

MAX_POINTS = 2000  # per line; more are thinned out
COLUMNS = 4
Record = Mapping[str, float]


def read_log(path: Path) -> list[dict[str, float]]:
    """Records of a JSONL file; a last line that was cut off by a crash is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def draw_curves(
    records: Sequence[Record],
    panels: Mapping[str, Sequence[str]],
    path: Path,
    *,
    limits: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Write a PNG with one panel per title, each showing the named numbers over the step.

    Args:
        records: one mapping per logged step; "step" is the horizontal axis. Numbers that a record lacks are skipped.
        panels: title -> names; a name ending in "/" stands for all names that begin with it.
        limits: title -> heights of dashed lines, beyond which a number is alarming.
    """
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), dpi=100, layout="constrained")
    for position, (title, names) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, position)
        for name in _expand(names, records):
            every = [(record["step"], record[name]) for record in records if name in record]
            points = every[:: max(1, math.ceil(len(every) / MAX_POINTS))]
            axes.plot(*zip(*points, strict=True), label=name, linewidth=1.2, marker="." if len(points) < 20 else None)
        if len(axes.lines) > 1:
            axes.legend(fontsize="small")
        for height in (limits or {}).get(title, ()):
            axes.axhline(height, color="firebrick", linestyle="--", linewidth=0.8)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
    FigureCanvasAgg(figure)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def _expand(names: Sequence[str], records: Sequence[Record]) -> list[str]:
    logged = list(dict.fromkeys(name for record in records for name in record))
    families = tuple(name for name in names if name.endswith("/"))
    return [name for name in logged if name in names or (families and name.startswith(families))]
