"""Pictures of features: the first three principal components of a map as red, green and blue beside the scan."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nnssl.paths import atomic_write
from nnssl.visualization.plan_pictures import PLANES

COLOURS = 3
CLIPPED = 1.0  # percent at either end of a component
INCHES, DPI = 1.9, 100  # of one panel


def principal_components(rows: NDArray[np.floating], count: int = COLOURS) -> NDArray[np.float64]:
    """Scores (rows, count) of the first principal components, largest variance first; missing ones are 0.

    The sign is fixed by the direction: its entry of largest size is positive.

    Args:
        rows: (rows, D).
    """
    centred = rows.astype(np.float64) - rows.mean(0, dtype=np.float64)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    directions = vectors[:, ::-1][:, :count]
    largest = directions[np.abs(directions).argmax(0), np.arange(directions.shape[1])]
    scores = centred @ (directions * np.where(largest < 0, -1.0, 1.0))
    return np.pad(scores, ((0, 0), (0, count - scores.shape[1])))


def principal_colours(maps: Sequence[NDArray[np.floating]]) -> list[NDArray[np.float64]]:
    """Maps (C, X, Y, Z) of several volumes -> colours (X, Y, Z, 3) in [0, 1] from components of all their cells."""
    scores = principal_components(np.concatenate([one.reshape(len(one), -1).T for one in maps]))
    low, high = np.percentile(scores, (CLIPPED, 100 - CLIPPED), axis=0)
    colours = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1)
    ends = np.cumsum([one[0].size for one in maps])[:-1]
    return [part.reshape(*one.shape[1:], COLOURS) for part, one in zip(np.split(colours, ends), maps, strict=True)]


def draw_features(
    path: Path,
    volumes: Sequence[NDArray[np.floating]],
    maps: Sequence[NDArray[np.floating]],
    *,
    spacing_mm: Sequence[float],
    title: str,
) -> None:
    """Write a PNG: a row per volume, in each plane the slice through the middle cell and that cell's colours.

    Args:
        volumes: (X, Y, Z) in [0, 1], RAS axes; patient right is drawn at the left.
        maps: (C, X / s, Y / s, Z / s) of each volume.
        spacing_mm: X, Y, Z.
    """
    figure = Figure(figsize=(2 * len(PLANES) * INCHES, len(volumes) * INCHES + 0.3), layout="constrained", dpi=DPI)
    figure.suptitle(title, fontsize="medium")
    panels = figure.subplots(len(volumes), 2 * len(PLANES), squeeze=False)
    for row, volume, colours in zip(panels, volumes, principal_colours(maps), strict=True):
        for place, (name, across, horizontal, vertical) in enumerate(PLANES):
            aspect = spacing_mm[vertical] / spacing_mm[horizontal]
            cells = colours.shape[across]
            middle = int((cells // 2 + 0.5) * volume.shape[across] / cells)
            _show(row[2 * place], np.take(volume, middle, axis=across).T, aspect, cmap="gray", vmin=0, vmax=1)
            picture = np.take(colours, cells // 2, axis=across).swapaxes(0, 1)
            ratio = np.divide(volume.shape, colours.shape[:3])
            _show(row[2 * place + 1], picture, aspect * ratio[vertical] / ratio[horizontal])
            row[2 * place].set_title(name, fontsize="small")
    FigureCanvasAgg(figure)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _show(panel: Axes, picture: NDArray[np.floating], aspect: float, **how: object) -> None:
    """Patient right (or anterior) at the left, low ends below."""
    panel.imshow(picture, origin="lower", aspect=aspect, interpolation="nearest", **how)  # type: ignore[arg-type]
    panel.invert_xaxis()
    panel.set_axis_off()
