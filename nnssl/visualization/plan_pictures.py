"""Pictures of a plan: histograms of spacings and sizes, and slices of a scan with crop boxes drawn; PNG in memory."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

AXES = "XYZ"
BINS = 20
BAR_COLOUR = "#9db4c0"
PICTURE_INCHES = 3.4  # of one slice or histogram
DPI = 100
PLANES = (  # of RAS axes: name, axis across the plane, horizontal and vertical axis
    ("axial", 2, 0, 1),
    ("coronal", 1, 0, 2),
    ("sagittal", 0, 1, 2),
)
SIDES = ("LR", "PA", "IS")  # low and high end of X, Y, Z


@dataclass(frozen=True)
class Mark:
    """One value per axis X Y Z: a vertical line in each histogram, or the sides (mm) of a box centred on the scan."""

    label: str
    values: tuple[float, float, float]
    colour: str
    style: str = "-"


def histograms(values: NDArray[np.float64], title: str, marks: Sequence[Mark]) -> bytes:
    """A PNG with one histogram per axis.

    Args:
        values: (cases, 3), X Y Z.
        title: what they are, with the unit.
    """
    figure = Figure(figsize=(3 * PICTURE_INCHES, 2.9), layout="constrained")
    for axis, panel in enumerate(figure.subplots(1, 3)):
        column = values[:, axis]
        panel.hist(column, bins=BINS, range=_histogram_range(column), color=BAR_COLOUR, edgecolor="white")
        for mark in marks:
            panel.axvline(mark.values[axis], color=mark.colour, linestyle=mark.style, label=mark.label, linewidth=1.8)
        panel.set_xlabel(f"{title}, {AXES[axis]}")
        panel.spines[["top", "right"]].set_visible(False)
        panel.yaxis.get_major_locator().set_params(integer=True)
        if axis == 0:
            panel.set_ylabel("scans")
    if marks:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(marks), frameon=False)
    return _png(figure, "white")


def slices_with_boxes(image: NDArray[np.float32], spacing_mm: Sequence[float], boxes: Sequence[Mark]) -> bytes:
    """A PNG with the middle slice in each plane and the outlines of the boxes, in physical proportions.

    Args:
        image: (X, Y, Z) of RAS axes; patient right is drawn at the left.
        spacing_mm: X, Y, Z.
    """
    extent = np.array(image.shape) * np.asarray(spacing_mm, dtype=float)
    shown = np.max([extent, *(box.values for box in boxes)], axis=0)
    widths = [shown[horizontal] for _, _, horizontal, _ in PLANES]
    height = max(shown[vertical] for *_, vertical in PLANES)
    scale = 3 * PICTURE_INCHES / sum(widths)
    size = 3 * PICTURE_INCHES, min(height * scale, 1.6 * PICTURE_INCHES) + 0.5
    figure = Figure(figsize=size, layout="constrained", facecolor="black")
    low, high = np.percentile(image, (0.5, 99.5))
    for panel, plane in zip(figure.subplots(1, 3, width_ratios=widths), PLANES, strict=True):
        name, across, horizontal, vertical = plane
        picture = np.take(image, image.shape[across] // 2, axis=across).T
        half_width, half_height = extent[horizontal] / 2, extent[vertical] / 2
        panel.imshow(
            picture,
            cmap="gray",
            vmin=low,
            vmax=max(high, low + 1e-6),
            origin="lower",
            extent=(-half_width, half_width, -half_height, half_height),
        )
        for box in boxes:
            width, tall = box.values[horizontal], box.values[vertical]
            panel.add_patch(
                Rectangle((-width / 2, -tall / 2), width, tall, fill=False, ec=box.colour, ls=box.style, lw=1.8)
            )
        panel.set_xlim(shown[horizontal] * 0.52, -shown[horizontal] * 0.52)  # right, and anterior, at the left
        panel.set_ylim(-shown[vertical] * 0.52, shown[vertical] * 0.52)
        panel.set_title(name, color="white", fontsize=10)
        panel.set_axis_off()
        _name_sides(panel, SIDES[horizontal], SIDES[vertical])
    return _png(figure, "black")


def _histogram_range(column: NDArray[np.float64]) -> tuple[float, float]:
    """Equal values get a bar of a readable width."""
    low, high = float(column.min()), float(column.max())
    margin = 0.0 if high - low > 0.02 * high else 0.1 * high
    return low - margin, high + margin


def _name_sides(panel: object, horizontal: str, vertical: str) -> None:
    words = {"color": "white", "fontsize": 9, "ha": "center", "va": "center", "transform": panel.transAxes}  # type: ignore[attr-defined]
    places = (
        (0.03, 0.5, horizontal[1]),
        (0.97, 0.5, horizontal[0]),
        (0.5, 0.03, vertical[0]),
        (0.5, 0.97, vertical[1]),
    )
    for x, y, letter in places:
        text = panel.text(x, y, letter, **words)  # type: ignore[attr-defined]
        text.set_path_effects([withStroke(linewidth=2, foreground="black")])


def _png(figure: Figure, background: str) -> bytes:
    """Without metadata: neither date nor program."""
    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, facecolor=background, metadata={"Software": None})
    return stream.getvalue()
