"""Pictures of label maps on their scan: reference and predicted outlines in the three planes through the foreground."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from nnssl.paths import atomic_write

REFERENCE_COLOUR, PREDICTION_COLOUR = "#ffb000", "#33c7ff"  # told apart in all common colour blindnesses
MARGIN_MM = 15.0  # shown around the foreground
PLANES = (  # title, axis across the plane, patient side at left, right, bottom and top of the picture
    ("axial", 2, "RLPA"),
    ("coronal", 1, "RLIS"),
    ("sagittal", 0, "APIS"),
)


@dataclass(frozen=True)
class Overlay:
    """One row of the picture: a predicted label map and what to write about it (run, Dice per label)."""

    title: str
    prediction: np.ndarray
    caption: str


def save_overlay(
    path: Path, image: np.ndarray, reference: np.ndarray, *, spacing_mm: Sequence[float], rows: Sequence[Overlay]
) -> None:
    """Write a PNG: a row per prediction, a column per plane, all rows on the same slices.

    Args:
        image, reference, predictions: (X, Y, Z), axes growing to patient Left, Posterior, Superior ("LPS").
        spacing_mm: voxel size along X, Y, Z; pictures keep physical proportions.
    """
    foreground = reference > 0 if (reference > 0).any() else np.any([row.prediction > 0 for row in rows], axis=0)
    slices = fullest_slices(foreground)
    everything = foreground | np.any([row.prediction > 0 for row in rows], axis=0)
    box = shown_box(everything, spacing_mm)
    figure, panels = _figure(box, spacing_mm, len(rows))
    low, high = _grey_window(image[box])
    for row, row_panels in zip(rows, panels, strict=True):
        row_panels[0].set_title(f"{row.title}\n{row.caption}", loc="left", color="white", fontsize=9, pad=6)
        for panel, (name, axis, sides) in zip(row_panels, PLANES, strict=True):
            cut = _Cut(axis, slices[axis], box, tuple(spacing_mm))
            panel.imshow(cut.take(image), cmap="gray", vmin=low, vmax=high, extent=cut.extent, origin="lower")
            _outline(panel, cut, reference, REFERENCE_COLOUR)
            _outline(panel, cut, row.prediction, PREDICTION_COLOUR)
            _decorate(panel, cut, sides, name)
    with atomic_write(path) as temporary:
        FigureCanvasAgg(figure)
        figure.savefig(temporary, format="png", dpi=110, facecolor="black")


def fullest_slices(foreground: np.ndarray) -> tuple[int, int, int]:
    """Index along X, Y and Z of the slice with the most foreground, the middle one of several."""
    found = []
    for axis in range(3):
        counts = foreground.sum(axis=tuple(other for other in range(3) if other != axis))
        fullest = np.flatnonzero(counts == counts.max())
        found.append(int(fullest[len(fullest) // 2]))
    return (found[0], found[1], found[2])


def shown_box(foreground: np.ndarray, spacing_mm: Sequence[float]) -> tuple[slice, slice, slice]:
    """The foreground with a margin of 15 mm or half its own extent, whichever is more, inside the volume."""
    box = []
    for axis, side in enumerate(foreground.shape):
        inside = np.flatnonzero(foreground.any(axis=tuple(other for other in range(3) if other != axis)))
        first, last = (int(inside[0]), int(inside[-1])) if len(inside) else (0, side - 1)
        margin = max(round(MARGIN_MM / spacing_mm[axis]), (last - first + 1) // 2)
        box.append(slice(max(0, first - margin), min(side, last + 1 + margin)))
    return (box[0], box[1], box[2])


@dataclass(frozen=True)
class _Cut:
    """One plane through the shown box, as a picture whose row 0 is at the bottom."""

    axis: int
    index: int
    box: tuple[slice, slice, slice]
    spacing_mm: tuple[float, ...]

    @property
    def across(self) -> tuple[int, int]:
        """Volume axes shown to the right and upwards."""
        right, up = (axis for axis in range(3) if axis != self.axis)
        return right, up

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom, top in mm."""
        sizes = [(self.box[axis].stop - self.box[axis].start) * self.spacing_mm[axis] for axis in self.across]
        return (0.0, sizes[0], 0.0, sizes[1])

    def take(self, volume: np.ndarray) -> np.ndarray:
        """(rows, columns) of the plane; rows of the axial plane are turned so that anterior is up."""
        index: list[Any] = list(self.box)
        index[self.axis] = self.index
        plane = volume[tuple(index)].T
        return plane[::-1] if self.axis == 2 else plane


def _outline(panel: Any, cut: _Cut, labels: np.ndarray, colour: str) -> None:
    """The outline of every label, between voxel centres."""
    plane = np.pad(cut.take(labels), 1)  # a label that touches the border is closed there
    right, up = (cut.spacing_mm[axis] for axis in cut.across)
    columns = (np.arange(plane.shape[1]) - 0.5) * right
    rows = (np.arange(plane.shape[0]) - 0.5) * up
    for value in np.unique(plane[plane > 0]):
        panel.contour(columns, rows, plane == value, levels=[0.5], colors=colour, linewidths=1.4)


def _decorate(panel: Any, cut: _Cut, sides: str, title: str) -> None:
    """Patient directions, the plane's name and a scale bar."""
    _, width, _, height = cut.extent
    panel.set_xlim(0, width)
    panel.set_ylim(0, height)
    panel.set_axis_off()
    panel.set_anchor("N")
    style: dict[str, Any] = {
        "color": "white",
        "fontsize": 8,
        "path_effects": [withStroke(linewidth=2, foreground="black")],
    }
    places = ((0.015, 0.5, "left"), (0.985, 0.5, "right"), (0.5, 0.02, "center"), (0.5, 0.98, "center"))
    for letter, (x, y, align), vertical in zip(sides, places, ("center", "center", "bottom", "top"), strict=True):
        panel.text(x, y, letter, transform=panel.transAxes, ha=align, va=vertical, **style)
    panel.text(0.015, 0.98, title, transform=panel.transAxes, va="top", **style)
    bar = next((length for length in (100.0, 50.0, 20.0, 10.0, 5.0) if length < 0.4 * width), 2.0)
    panel.plot(
        [0.03 * width, 0.03 * width + bar], [0.03 * height] * 2, color="white", linewidth=2, solid_capstyle="butt"
    )
    panel.text(0.03 * width, 0.05 * height, f"{bar:g} mm", **style, va="bottom")


def _figure(box: tuple[slice, ...], spacing_mm: Sequence[float], rows: int) -> tuple[Figure, np.ndarray]:
    """A black figure whose columns are as wide as their planes; panels (rows, 3)."""
    x, y, z = ((part.stop - part.start) * spacing for part, spacing in zip(box, spacing_mm, strict=True))
    width, height = 11.0, 0.0
    height = width * max(y, z) / (x + x + y)
    figure = Figure(figsize=(width, rows * (min(height, 6.0) + 0.55) + 0.4), layout="constrained")
    panels = figure.subplots(rows, 3, squeeze=False, width_ratios=(x, x, y))
    handles = [
        Line2D([], [], color=colour, label=name)
        for name, colour in (("reference", REFERENCE_COLOUR), ("prediction", PREDICTION_COLOUR))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, labelcolor="white", fontsize=9)
    return figure, panels


def _grey_window(voxels: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(voxels, [0.5, 99.5])
    return float(low), float(high) if high > low else float(low) + 1.0
