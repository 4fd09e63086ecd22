"""Crops against the reference's statistics, resizing and orientations against golden numbers and numpy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from nnssl.transforms.views import CropRule, random_box, random_orientation, random_view, resize
from tests.rules import golden_error, normal

RULES = {"global": CropRule((0.48, 1.0), (0.5, 1.0)), "local": CropRule((0.16, 0.48), (0.2, 0.5))}
DRAWS = 4000
REFERENCE_DRAWS = 20000
Shape = tuple[int, int, int]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _boxes(
    shape: Shape, rule: CropRule, *, size: Shape = (96, 96, 96), depth_axis: int = 2, draws: int = DRAWS
) -> tuple[np.ndarray, np.ndarray]:
    """Starts and edges (draws, 3) in voxels."""
    generator = _generator()
    boxes = [random_box(shape, rule, size=size, depth_axis=depth_axis, generator=generator) for _ in range(draws)]
    starts = np.array([[axis.start for axis in box] for box in boxes])
    return starts, np.array([[axis.stop for axis in box] for box in boxes]) - starts


@pytest.mark.parametrize("family", RULES)
def test_crops_are_distributed_like_the_reference(golden: Callable[[str], Any], family: str) -> None:
    stored, shape = golden("g10_intensity_crop.npz"), (200, 180, 60)
    name = f"crop.200x180x60.{family}."
    starts, edges = _boxes(shape, RULES[family])
    fraction = edges / np.array(shape)
    error = np.sqrt(1 / DRAWS + 1 / REFERENCE_DRAWS)  # both sides are samples

    expected, spread = stored[name + "edge_fraction_mean_hwd"], stored[name + "edge_fraction_std_hwd"]
    assert (np.abs(fraction.mean(0) - expected) < 4 * spread * error).all()
    np.testing.assert_allclose(fraction.std(0), spread, rtol=0.05)
    area = fraction[:, 0] * fraction[:, 1]
    mean, deviation, low, high = stored[name + "area_fraction_mean_std_min_max"]
    assert abs(area.mean() - mean) < 4 * deviation * error
    assert area.min() > low - 0.005 and area.max() < high + 0.005
    ratio = edges[:, 1] / edges[:, 0]
    mean, deviation, low, high = stored[name + "pixel_ratio_w_over_h_mean_std_min_max"]
    assert abs(ratio.mean() - mean) < 4 * deviation * error
    assert ratio.min() > low - 0.01 and ratio.max() < high + 0.01
    correlation = np.corrcoef(fraction.T)[[0, 0, 1], [1, 2, 2]]
    assert (np.abs(correlation - stored[name + "corr_hw_hd_wd"]) < 4 * error).all()
    room = np.array(shape) - edges
    corner = np.array([(starts[:, i] / np.maximum(room[:, i], 1))[room[:, i] > 0].mean() for i in range(3)])
    expected, spread = stored[name + "relative_corner_mean_std_hwd"]
    assert (np.abs(corner - expected) < 0.02).all(), spread
    end = stored[name + "corner_touches_end_fraction_hwd"]
    touching = np.array([(starts == room)[room[:, i] > 0, i].mean() for i in range(3)])
    assert (np.abs(touching - end) < 4 * np.sqrt(end) * error).all()


def test_depth_is_drawn_on_the_named_axis() -> None:
    _, edges = _boxes((60, 200, 180), RULES["global"], depth_axis=0, draws=300)
    assert set(range(30, 61)) >= set(edges[:, 0].tolist())
    assert abs(np.corrcoef(edges.T)[0, 1]) < 0.2 < 0.6 < np.corrcoef(edges.T)[1, 2]


def test_an_anisotropic_view_keeps_its_proportions() -> None:
    size = (48, 64, 48)
    _, edges = _boxes((150, 200, 150), RULES["global"], size=size, draws=500)
    stretch = (edges[:, 1] / size[1]) / (edges[:, 0] / size[0])
    assert stretch.min() > 0.88 and stretch.max() < 1.13
    area = edges[:, 0] * edges[:, 1] / (150 * 200)
    assert area.min() > 0.47 and abs(area.mean() - 0.72) < 0.05


def test_an_elongated_plane_falls_back_to_the_largest_box_of_an_allowed_ratio() -> None:
    starts, edges = _boxes((20, 200, 40), RULES["global"], draws=200)
    assert (edges[:, 0] == 20).all() and (edges[:, 1] == 22).all()
    assert len(np.unique(starts[:, 1])) > 50  # still placed at random


def test_every_box_lies_inside_the_smallest_volumes() -> None:
    for shape in ((1, 1, 1), (2, 3, 1), (5, 2, 9)):
        starts, edges = _boxes(shape, RULES["local"], draws=50)
        assert (starts >= 0).all() and (edges >= 1).all() and (starts + edges <= np.array(shape)).all()


def test_resize_equals_the_reference(golden: Callable[[str], Any]) -> None:
    volume = torch.from_numpy(normal("resize.input", (1, 9, 7, 5)))
    assert golden_error(golden("g10_intensity_crop.npz"), "resize.to8", resize(volume, (8, 8, 8)).numpy()) < 2e-6


def test_flips_and_turns_are_signed_permutations_of_the_axes() -> None:
    cube = torch.arange(27.0).view(1, 3, 3, 3)
    generator, seen = _generator(), set()
    for _ in range(1500):
        turned = random_orientation(cube, generator)
        steps = [int(turned[0, 1, 1, 1] - turned[0][index]) for index in ((0, 1, 1), (1, 0, 1), (1, 1, 0))]
        assert sorted(abs(step) for step in steps) == [1, 3, 9]
        seen.add(tuple(steps))
    assert len(seen) == 48  # all symmetries of the cube occur


def test_all_turns_at_once_are_the_turns_one_after_the_other() -> None:
    view = torch.rand(2, 5, 5, 5, generator=_generator())
    for seed in range(60):
        draws, expected = torch.rand(9, generator=_generator(seed), dtype=torch.float64).tolist(), view
        for axis in range(3):
            if draws[axis] < 0.4:
                expected = expected.flip(axis + 1)
        for plane, happens, share in zip(((1, 2), (1, 3), (2, 3)), draws[3::2], draws[4::2], strict=True):
            expected = expected.rot90(1 + int(3 * share), plane) if happens < 0.6 else expected
        assert random_orientation(view, _generator(seed), flip=0.4, turn=0.6).equal(expected)


@pytest.mark.parametrize("size", [(8, 8, 8), (20, 6, 31)])
def test_plane_then_depth_is_trilinear_resizing(size: Shape) -> None:
    volume = torch.rand(2, 30, 17, 12, generator=_generator())
    for crop in (volume, volume[:, 3:14, 2:15, 1:9]):  # the latter is not contiguous
        expected = torch.nn.functional.interpolate(crop[None], size=size, mode="trilinear", align_corners=False)[0]
        torch.testing.assert_close(resize(crop, size), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("full", [40, 33, 12])
def test_a_view_is_its_box_resized_whatever_lies_beside_it(full: int) -> None:
    """The plane is resized together with neighbours along Z, which the depth pass leaves out."""
    volume, size = torch.rand(1, 24, 20, full, generator=_generator()), (8, 8, 8)
    for seed in range(12):
        x, y, z = random_box((24, 20, full), RULES["global"], size=size, depth_axis=2, generator=_generator(seed))
        view = random_view(volume, RULES["global"], size=size, depth_axis=2, generator=_generator(seed))
        alone = torch.nn.functional.interpolate(volume[None, :, x, y, z], size=size, mode="trilinear")[0]
        expected, found = (part.flatten().sort().values for part in (alone, view))  # a turn only moves voxels
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_flip_and_turn_happen_with_the_given_probability() -> None:
    line = torch.arange(2.0).view(1, 2, 1, 1)
    generator = _generator()
    flipped = [random_orientation(line, generator, turn=0.0)[0, 0, 0, 0].item() for _ in range(3000)]
    assert abs(np.mean(flipped) - 0.3) < 0.035
    plane = torch.arange(4.0).view(1, 2, 2, 1)  # planes (0, 2), (1, 2) have unequal sides
    same = [random_orientation(plane, generator, flip=0.0, turn=1.0).equal(plane) for _ in range(100)]
    assert not all(same)


def test_a_plane_with_unequal_sides_keeps_its_shape() -> None:
    volume = torch.rand(1, 4, 6, 8, generator=_generator())
    generator = _generator()
    shapes = {tuple(random_orientation(volume, generator, turn=1.0).shape) for _ in range(20)}
    assert shapes == {(1, 4, 6, 8)}


def test_a_view_depends_on_the_generator_only() -> None:
    volume = torch.rand(1, 30, 25, 12, generator=_generator(3))
    first, again, other = (
        random_view(volume, RULES["local"], size=(16, 16, 16), depth_axis=2, generator=_generator(seed))
        for seed in (5, 5, 6)
    )
    assert first.shape == (1, 16, 16, 16)
    assert first.equal(again) and not first.equal(other)


@pytest.mark.parametrize("rule", [{"area": (0.0, 1.0)}, {"area": (0.5, 1.2)}, {"depth": (0.5, 0.2)}])
def test_an_impossible_crop_rule_names_its_values(rule: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="expected 0 < low <= high"):
        CropRule(**{"area": (0.5, 1.0), "depth": (0.5, 1.0), **rule})


def test_resizing_gives_the_same_bits_for_any_number_of_threads() -> None:
    random, threads, found = np.random.default_rng(0), torch.get_num_threads(), []
    volumes = [torch.from_numpy(random.random((1, *random.integers(20, 150, 3)), dtype=np.float32)) for _ in range(4)]
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            found.append([resize(volume, (48, 48, 48)) for volume in volumes])
    finally:
        torch.set_num_threads(threads)
    assert all(one.equal(other) for others in found[1:] for one, other in zip(found[0], others, strict=True))
