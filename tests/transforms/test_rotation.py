"""Turns against numpy and the reference; the 24 orientations against the rotation group of the cube."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from nnssl.transforms.rotation import check_turns, orientation, quarter_turns, random_turns

CUBE = np.arange(64.0).reshape(1, 4, 4, 4)
PLANES = {0: (2, 3), 1: (3, 1), 2: (1, 2)}  # of (C, X, Y, Z): right-handed


@pytest.mark.parametrize("quarters", range(4))
def test_turns_about_x_are_the_reference_s(golden: Callable[[str], Any], quarters: int) -> None:
    expected = golden("g08_contrastive_rotation_cutout.npz")[f"rotation.k{quarters}"]
    np.testing.assert_array_equal(quarter_turns(torch.from_numpy(CUBE), quarters, 0)[0], expected)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("quarters", range(4))
def test_a_turn_about_an_axis_is_numpy_s(axis: int, quarters: int) -> None:
    turned = quarter_turns(torch.from_numpy(CUBE), quarters, axis)
    np.testing.assert_array_equal(turned, np.rot90(CUBE, quarters, PLANES[axis]))


def _matrix(turn: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
    """The 3x3 matrix by which a turn moves the unit vectors of a cube around its centre."""
    columns = []
    for axis in range(3):
        cube, place = torch.zeros(3, 3, 3), [1, 1, 1]
        place[axis] = 2
        cube[tuple(place)] = 1
        columns.append(turn(cube).nonzero()[0].numpy() - 1)
    return np.array(columns).T


def test_the_24_orientations_are_all_rotations_of_a_cube() -> None:
    matrices = [_matrix(lambda cube, index=index: orientation(cube, index)) for index in range(24)]
    assert len({matrix.tobytes() for matrix in matrices}) == 24
    for matrix in matrices:
        assert np.linalg.det(matrix) == pytest.approx(1)  # no mirror image
        np.testing.assert_array_equal(matrix @ matrix.T, np.eye(3))


def test_the_first_four_orientations_are_the_turns_about_z() -> None:
    cube = torch.from_numpy(CUBE)
    for index in range(4):
        assert orientation(cube, index).equal(quarter_turns(cube, index, 2))


@pytest.mark.parametrize("classes", [4, 24])
def test_random_turns_name_the_class_that_undoes_them_and_use_all_classes_alike(classes: int) -> None:
    cube = torch.from_numpy(CUBE)
    views = cube.expand(classes * 100, *cube.shape)
    turned, labels = random_turns(views, classes, axis=0, generator=torch.Generator().manual_seed(0))
    for view, label in list(zip(turned, labels.tolist(), strict=True))[:50]:
        assert view.equal(quarter_turns(cube, label, 0) if classes == 4 else orientation(cube, label))
    counts = np.bincount(labels, minlength=classes)
    assert (np.abs(counts - 100) < 4 * np.sqrt(100)).all()


def test_sides_that_change_places_must_be_equal() -> None:
    check_turns((32, 32, 16), 4, 2)
    check_turns((16, 16, 16), 24, 0)
    with pytest.raises(ValueError, match=r"the sides \[32, 16\] that change places must be equal; take a cubic crop"):
        check_turns((32, 32, 16), 4, 0)
    with pytest.raises(ValueError, match="must be equal"):
        check_turns((32, 32, 16), 24, 2)
