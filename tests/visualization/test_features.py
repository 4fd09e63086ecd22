"""Pictures of features: principal components against a singular value decomposition, and signs that never flip."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from nnssl.visualization.features import draw_features, principal_colours, principal_components


def rows(count: int = 200, width: int = 7) -> np.ndarray:
    generator = np.random.default_rng(3)
    return generator.normal(size=(count, width)) @ generator.normal(size=(width, width)) + 5


def test_components_are_those_of_a_singular_value_decomposition_up_to_the_sign() -> None:
    features = rows()
    centred = features - features.mean(0)
    left, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    found = principal_components(features.astype(np.float32))
    np.testing.assert_allclose(np.abs(found), np.abs(left * sizes)[:, :3], rtol=1e-3, atol=1e-4)
    for place in range(3):  # the entry of largest size points upwards
        largest = np.argmax(np.abs(directions[place]))
        expected = centred @ directions[place] * np.sign(directions[place, largest])
        np.testing.assert_allclose(found[:, place], expected, rtol=1e-3, atol=1e-4)


def test_signs_do_not_depend_on_the_order_of_the_rows() -> None:
    features, order = rows(), np.random.default_rng(0).permutation(200)
    np.testing.assert_allclose(principal_components(features[order]), principal_components(features)[order], atol=1e-8)


def test_maps_of_two_channels_have_no_third_component() -> None:
    found = principal_components(rows(50, 2))
    assert found.shape == (50, 3) and not found[:, 2].any()


def test_cells_of_all_volumes_share_their_colours() -> None:
    features = rows(2 * 3 * 4 + 2 * 2 * 2)
    first, second = features[:24].T.reshape(7, 2, 3, 4), features[24:].T.reshape(7, 2, 2, 2)
    colours = principal_colours([first, second])
    assert [one.shape for one in colours] == [(2, 3, 4, 3), (2, 2, 2, 3)]
    together = np.concatenate([one.reshape(-1, 3) for one in colours])
    assert together.min() == 0 and together.max() == 1
    scores = principal_components(features)
    for place in range(3):
        inside = (together[:, place] > 0) & (together[:, place] < 1)
        assert np.corrcoef(together[inside, place], scores[inside, place])[0, 1] > 0.9999


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.0, 4.0)])
def test_the_picture_shows_the_scan_beside_the_cells(tmp_path: Path, spacing: tuple[float, float, float]) -> None:
    volume = np.zeros((16, 24, 8), np.float32)
    volume[:8] = 1.0  # patient left is the high end of X, drawn at the right
    features = np.random.default_rng(0).normal(size=(4, 2, 3, 1))
    draw_features(tmp_path / "a.png", [volume, volume], [features, features], spacing_mm=spacing, title="t")
    draw_features(tmp_path / "b.png", [volume, volume], [features, features], spacing_mm=spacing, title="t")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    picture = imread(tmp_path / "a.png")[..., :3]
    coloured = (picture.max(-1) - picture.min(-1)) > 0.1
    assert coloured.any() and picture.std() > 0.1
    axial = picture[60:180, 10:180].mean(-1)  # the first panel
    dark, bright = np.argwhere(axial < 0.05)[:, 1].mean(), np.argwhere(axial > 0.95)[:, 1].mean()
    assert dark < bright  # X grows to the left of the picture
