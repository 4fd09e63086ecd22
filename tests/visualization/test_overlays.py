"""Overlay pictures: the right slices, outlines where the labels are, physical proportions."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from nnssl.visualization.overlays import (
    PREDICTION_COLOUR,
    REFERENCE_COLOUR,
    Overlay,
    fullest_slices,
    save_overlay,
    shown_box,
)

SHAPE = (24, 20, 8)


def ball() -> np.ndarray:
    x, y, z = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    return ((x - 10) ** 2 + (y - 8) ** 2 + (3 * (z - 4)) ** 2 < 30).astype(np.uint8)


def pixels_of(picture: np.ndarray, colour: str) -> np.ndarray:
    """(N, 2) rows and columns of pixels near a colour #rrggbb."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.argwhere(np.abs(picture[..., :3] - wanted).max(-1) < 0.12)


def draw(path: Path, reference: np.ndarray, *predictions: np.ndarray) -> np.ndarray:
    image = np.random.default_rng(0).normal(size=SHAPE)
    rows = [Overlay(f"run {i}", prediction, "Dice 0.5") for i, prediction in enumerate(predictions)]
    save_overlay(path, image, reference, spacing_mm=(1.0, 1.0, 3.0), rows=rows)
    return imread(path)


def test_slices_are_those_with_most_foreground() -> None:
    assert fullest_slices(ball() > 0) == (10, 8, 4)
    assert fullest_slices(np.zeros(SHAPE, bool)) == (12, 10, 4)


def test_shown_box_holds_the_foreground_and_stays_inside() -> None:
    mask = np.zeros((100, 100, 100), bool)
    mask[40:50, 2, 10:60] = True
    assert shown_box(mask, (1.0, 1.0, 1.0)) == (slice(25, 65), slice(0, 18), slice(0, 85))


def test_both_outlines_are_drawn_and_prediction_moves_with_its_labels(tmp_path: Path) -> None:
    near = draw(tmp_path / "near.png", ball(), np.roll(ball(), 2, 0))
    far = draw(tmp_path / "far.png", ball(), np.roll(ball(), 6, 0))
    for picture in (near, far):
        assert len(pixels_of(picture, REFERENCE_COLOUR)) > 100
        assert len(pixels_of(picture, PREDICTION_COLOUR)) > 100
    third = near.shape[1] // 3
    axial = [
        found[found[:, 1] < third][:, 1].mean() for found in (pixels_of(p, PREDICTION_COLOUR) for p in (near, far))
    ]
    assert axial[1] > axial[0] + 20  # four voxels further to the patient's left, which is the picture's right


def test_proportions_are_physical(tmp_path: Path) -> None:
    cube = np.zeros(SHAPE, np.uint8)
    cube[5:14, 4:13, 2:5] = 1  # 9 x 9 x 9 mm
    picture = draw(tmp_path / "cube.png", cube, cube)
    found = pixels_of(picture, PREDICTION_COLOUR)
    found = found[found[:, 0] < picture.shape[0] * 0.85]  # without the legend
    third = picture.shape[1] // 3
    for panel in range(3):
        part = found[(found[:, 1] >= panel * third) & (found[:, 1] < (panel + 1) * third)]
        height, width = np.ptp(part, axis=0)
        assert height == pytest.approx(width, rel=0.06), panel


def test_a_second_run_adds_a_row(tmp_path: Path) -> None:
    one = draw(tmp_path / "one.png", ball(), ball())
    two = draw(tmp_path / "two.png", ball(), ball(), np.roll(ball(), 3, 1))
    assert one.shape[1] == two.shape[1]
    assert 1.6 < two.shape[0] / one.shape[0] < 2.1


def test_empty_labels_and_constant_image_still_give_a_picture(tmp_path: Path) -> None:
    empty = np.zeros(SHAPE, np.uint8)
    save_overlay(tmp_path / "e.png", np.ones(SHAPE), empty, spacing_mm=(1, 1, 3), rows=[Overlay("r", empty, "-")])
    assert imread(tmp_path / "e.png").shape[2] == 4
