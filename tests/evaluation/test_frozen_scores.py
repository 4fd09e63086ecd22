"""Scores of an encoder in pretraining: which scans are looked at, what they say, and that a run is left alone."""

from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import torch
from torch import Tensor

from nnssl.data.volumes import StoredFolder
from nnssl.encoders import build_encoder
from nnssl.encoders.base import Encoder, EncoderSpec, Features, IntensityRange
from nnssl.evaluation.frozen_scores import frozen_scores
from nnssl.evaluation.labelled import CASES, LabelledCrop, LabelledSet, read_labelled

LABELS = {"labels": {"background": 0, "L+R": 3, "core": 7}}


class Brightness(Encoder):
    """Intensity and its square of every voxel: then a line parts three levels of brightness."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = EncoderSpec("brightness", (2,), (1,), 2, (8, 8, 8), intensity=IntensityRange("window", 0, 1))

    def forward(self, volume: Tensor, token_mask: Tensor | None = None) -> Features:
        features = torch.cat([volume, volume**2], 1)
        return Features([features], features.mean((2, 3, 4)), {})


def stored(folder: Path, labelled: int, unlabelled: int = 0, side: int = 12) -> StoredFolder:
    """Scans of 2x2x2 blocks, brightness 0, 0.5 and 1 for labels 0, 3 and 7; the last ones have no label map."""
    generator, cases = np.random.default_rng(0), []
    for number in range(labelled + unlabelled):
        blocks = generator.integers(0, 3, (side // 2,) * 3)
        place = np.repeat(np.repeat(np.repeat(blocks, 2, 0), 2, 1), 2, 2)
        cases.append(f"case{number}")
        blosc2.asarray((place / 2)[None].astype(np.float32), urlpath=str(folder / f"case{number}.b2nd"), mode="w")
        values = np.array([0, 3, 7] if number < labelled else [0, -1, 0], np.int16)[place][None]
        blosc2.asarray(values, urlpath=str(folder / f"case{number}_seg.b2nd"), mode="w")
    return StoredFolder("Dataset901_Toy", folder, cases)


def test_an_encoder_that_sees_the_labels_gets_full_marks_for_each(tmp_path: Path) -> None:
    scores = frozen_scores(Brightness(), read_labelled(stored(tmp_path, 6), LABELS, (8, 8, 8)))
    names = {"probe/knn", "probe/knn_background", "probe/knn_L_R", "probe/knn_core"}
    assert set(scores) == names | {"probe/linear", "probe/linear_L_R", "probe/linear_core"}
    assert all(scores[name] == 1 for name in names)
    assert scores["probe/linear"] > 0.95  # after 200 steps
    np.testing.assert_allclose(scores["probe/linear"], (scores["probe/linear_L_R"] + scores["probe/linear_core"]) / 2)


def test_labels_that_are_drawn_at_random_stay_near_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    crops = tuple(
        LabelledCrop(
            torch.rand(1, 16, 16, 16, generator=generator), torch.randint(3, (16, 16, 16), generator=generator)
        )
        for _ in range(8)
    )
    scores = frozen_scores(Brightness(), LabelledSet(("background", "a", "b"), crops[::2], crops[1::2]))
    assert abs(scores["probe/knn"] - 1 / 3) < 0.06


def test_scoring_draws_nothing_from_the_global_generator_and_repeats_itself(tmp_path: Path) -> None:
    encoder = build_encoder("vit_tiny_8", native_crop=(16, 16, 16), options={"depth": 4, "dim": 24}, drop_path=0.5)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    labelled = read_labelled(stored(tmp_path, 4), LABELS, (8, 8, 8))
    state = torch.get_rng_state()
    first, again = (frozen_scores(encoder, labelled) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first == again
    assert all(value.equal(before[name]) for name, value in encoder.state_dict().items())


def test_the_same_cases_are_chosen_and_halved_every_time_whatever_their_order(tmp_path: Path) -> None:
    folder = stored(tmp_path, CASES + 4, unlabelled=3)
    first = read_labelled(folder, LABELS, (8, 8, 8))
    again = read_labelled(folder._replace(cases=folder.cases[::-1]), LABELS, (8, 8, 8))
    assert len(first.train) == len(first.held_out) == CASES // 2
    for one, other in zip(first.train + first.held_out, again.train + again.held_out, strict=True):
        assert torch.equal(one.volume, other.volume) and torch.equal(one.labels, other.labels)
    volumes = [one.volume.numpy().tobytes() for one in first.train + first.held_out]
    assert len(set(volumes)) == CASES  # none is in both halves


def test_crops_lie_inside_hold_a_label_and_agree_with_the_scan(tmp_path: Path) -> None:
    labelled = read_labelled(stored(tmp_path, 6), LABELS, (8, 20, 6))
    for one in labelled.train + labelled.held_out:
        assert one.volume.shape == (1, 8, 12, 6) and one.labels.shape == (8, 12, 6)
        assert torch.equal(one.labels, (2 * one.volume[0]).long()) and (one.labels > 0).any()
    assert labelled.names == ("background", "L+R", "core")


@pytest.mark.parametrize(
    ("labels", "cases", "said"),
    [
        (LABELS, 3, "3 stored case(s) with labels, needed are 4 or more"),
        ({"labels": {"background": 0, "a": 3, "ignore": 7}}, 6, "label 'ignore' cannot be scored"),
    ],
)
def test_data_sets_that_cannot_be_scored_are_refused(
    tmp_path: Path, labels: dict[str, Any], cases: int, said: str
) -> None:
    with pytest.raises(ValueError, match="-probe_dataset Dataset901_Toy") as refused:
        read_labelled(stored(tmp_path, cases, unlabelled=2), labels, (8, 8, 8))
    assert said in str(refused.value)


def test_values_that_only_regions_name_are_labels_of_their_own(tmp_path: Path) -> None:
    regions = {"labels": {"background": 0, "whole": [3, 7], "core": 7}}
    assert read_labelled(stored(tmp_path, 4), regions, (8, 8, 8)).names == ("background", "3", "core")
