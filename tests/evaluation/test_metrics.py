"""Dice and HD95 against hand-computed values, MONAI, nnU-Net and a distance transform."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from monai.metrics import compute_hausdorff_distance
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from scipy import ndimage

from nnssl.evaluation.metrics import dice, evaluated_labels, hd95_mm, score_case, score_maps, surface


def block(shape: tuple[int, ...], *sides: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


def blob(seed: int, shape: tuple[int, ...] = (24, 22, 20), threshold: float = 0.05) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=shape)
    return ndimage.gaussian_filter(noise, 2.5) > threshold * 0.5


def save_labels(path: Path, array: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.5, 3.0)) -> Path:
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing)
    SimpleITK.WriteImage(image, str(path), True)
    return path


def test_dice_of_two_half_overlapping_blocks_is_one_half() -> None:
    assert dice(block((4, 4, 8), (0, 4), (0, 4), (0, 4)), block((4, 4, 8), (0, 4), (0, 4), (2, 6))) == 0.5


def test_empty_masks_follow_the_stated_convention() -> None:
    empty, full = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    assert np.isnan(dice(empty, empty))
    assert np.isnan(hd95_mm(empty, empty, (1, 1, 1)))
    assert dice(empty, full) == dice(full, empty) == 0
    assert hd95_mm(empty, full, (1, 1, 1)) == hd95_mm(full, empty, (1, 1, 1)) == float("inf")


@pytest.mark.parametrize(("axis", "expected"), [(0, 10.0), (1, 4.0), (2, 1.5)])
def test_block_shifted_by_two_voxels_is_two_spacings_away(axis: int, expected: float) -> None:
    first = block((12, 12, 12), (4, 5), (4, 5), (4, 5))
    assert hd95_mm(first, np.roll(first, 2, axis), (5.0, 2.0, 0.75)) == expected


def test_distance_is_the_larger_of_the_two_directions() -> None:
    first = block((1, 1, 30), (0, 1), (0, 1), (0, 1))
    second = first | block((1, 1, 30), (0, 1), (0, 1), (20, 21))
    # directed: 0 one way; {0, 20 mm} the other way, whose 95th percentile is 19 mm
    assert hd95_mm(first, second, (1, 1, 1)) == pytest.approx(19.0)


def test_surface_is_the_mask_without_its_erosion() -> None:
    mask = blob(3)
    mask[0] = True  # touches the border, where the outside begins
    assert np.array_equal(surface(mask), mask & ~ndimage.binary_erosion(mask))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 1.4, 0.7)])
def test_hd95_equals_monai_and_a_distance_transform(seed: int, spacing: tuple[float, float, float]) -> None:
    first, second = blob(seed), blob(seed + 10)
    ours = hd95_mm(first, second, spacing)
    as_batch = [torch.from_numpy(mask)[None, None].float() for mask in (first, second)]
    theirs = compute_hausdorff_distance(*as_batch, include_background=True, percentile=95, spacing=spacing)
    assert ours == pytest.approx(theirs.item(), rel=1e-5)
    one, two = surface(first), surface(second)
    directed = [
        ndimage.distance_transform_edt(~target, sampling=spacing)[points] for points, target in ((one, two), (two, one))
    ]
    assert ours == pytest.approx(max(np.percentile(distances, 95) for distances in directed), rel=1e-12)


def test_scores_of_a_cropped_label_equal_scores_of_whole_masks() -> None:
    reference, prediction = (np.where(blob(s), np.where(blob(s + 5), 2, 1), 0).astype(np.uint8) for s in (0, 1))
    scores = score_maps(reference, prediction, spacing_mm=(3, 1, 2), labels={"one": (1,), "both": (1, 2), "none": (7,)})
    for name, first, second in (
        ("one", reference == 1, prediction == 1),
        ("both", reference > 0, prediction > 0),
    ):
        assert scores[name].dice == dice(first, second)
        assert scores[name].hd95_mm == hd95_mm(first, second, (3, 1, 2))
        assert scores[name].reference_ml == pytest.approx(first.sum() * 6 / 1000)
    assert np.isnan(scores["none"].dice)


@pytest.mark.parametrize("ignore", [None, 3])
def test_dice_equals_nnunet_with_regions_and_ignore_label(tmp_path: Path, ignore: int | None) -> None:
    rng = np.random.default_rng(0)
    reference = save_labels(tmp_path / "r.nii.gz", rng.integers(0, 4, (8, 9, 10)).astype(np.uint8))
    prediction = save_labels(tmp_path / "p.nii.gz", rng.integers(0, 3, (8, 9, 10)).astype(np.uint8))
    labels = {"whole": (1, 2), "core": (2,)}
    theirs = compute_metrics(str(reference), str(prediction), SimpleITKIO(), [(1, 2), 2], ignore)["metrics"]
    ours = score_case(reference, prediction, labels, ignore)
    assert ours["whole"].dice == pytest.approx(theirs[(1, 2)]["Dice"], abs=1e-12)
    assert ours["core"].dice == pytest.approx(theirs[2]["Dice"], abs=1e-12)


def test_files_are_scored_in_their_own_spacing(tmp_path: Path) -> None:
    first = block((12, 12, 12), (4, 5), (4, 5), (4, 5)).astype(np.uint8)  # (Z, Y, X)
    reference = save_labels(tmp_path / "r.nii.gz", first, (0.5, 1.0, 4.0))
    prediction = save_labels(tmp_path / "p.nii.gz", np.roll(first, 2, 0), (0.5, 1.0, 4.0))
    assert score_case(reference, prediction, {"x": (1,)})["x"].hd95_mm == pytest.approx(8.0)


def test_prediction_on_other_voxels_is_refused_by_name(tmp_path: Path) -> None:
    array = np.ones((4, 5, 6), np.uint8)
    reference = save_labels(tmp_path / "r.nii.gz", array)
    prediction = save_labels(tmp_path / "p.nii.gz", array, (1.0, 1.5, 2.0))
    with pytest.raises(ValueError, match=r"p\.nii\.gz: spacing \(1, 1.5, 2\) differs from spacing \(1, 1.5, 3\)"):
        score_case(reference, prediction, {"x": (1,)})


def test_probabilities_instead_of_labels_are_refused(tmp_path: Path) -> None:
    reference = save_labels(tmp_path / "r.nii.gz", np.ones((4, 5, 6), np.uint8))
    prediction = save_labels(tmp_path / "p.nii.gz", np.full((4, 5, 6), 0.4, np.float32))
    with pytest.raises(ValueError, match="not whole numbers"):
        score_case(reference, prediction, {"x": (1,)})


def test_background_and_ignore_are_not_scored() -> None:
    assert evaluated_labels({"labels": {"background": 0, "a": 1, "b": [1, 2], "ignore": 3}}) == {"a": (1,), "b": (1, 2)}
