"""Which image a sample shows: passes over all images, and shares of data sets."""

from collections import Counter

import numpy as np
import pytest

from nnssl.data.mixing import BLOCK, Passes, Weighted
from nnssl.data.seeds import derived_seed

OWNERS = ["A"] * 3 + ["B"] * 50 + ["C"] * 7
WEIGHTS = {"A": 1.0, "B": 2.0, "C": 5.0}


def test_passes_are_numpys_permutations_of_the_derived_seeds() -> None:
    passes = Passes(5, 3, 0)
    expected = [np.random.default_rng(derived_seed(3, 0, turn)).permutation(5) for turn in range(3)]
    assert [passes(number) for number in range(15)] == np.concatenate(expected).tolist()


@pytest.mark.parametrize(
    "numbers", [range(800), range(BLOCK), range(5 * BLOCK, 6 * BLOCK), range(BLOCK - 90, 2 * BLOCK)]
)
def test_each_data_set_gives_its_share_whatever_its_size(numbers: range) -> None:
    mixed = Weighted(OWNERS, WEIGHTS, seed=1)
    counts = Counter(OWNERS[mixed(number)] for number in numbers)
    blocks = [number // BLOCK for number in numbers]
    exact = blocks.count(blocks[0]) == len(numbers) == BLOCK
    for name, weight in WEIGHTS.items():
        expected = len(numbers) * weight / 8
        assert abs(counts[name] - expected) <= (2 if exact else 5 * expected**0.5)


def test_within_a_data_set_every_image_comes_once_per_pass() -> None:
    mixed = Weighted(OWNERS, WEIGHTS, seed=1)
    images = [mixed(number) for number in range(2 * BLOCK)]
    for name in WEIGHTS:
        counts = Counter(image for image in images if OWNERS[image] == name)
        assert set(counts) == {i for i, owner in enumerate(OWNERS) if owner == name}
        assert max(counts.values()) - min(counts.values()) <= 1


def test_a_number_gives_the_same_image_whatever_was_asked_before() -> None:
    ahead, mixed = Weighted(OWNERS, WEIGHTS, seed=1), Weighted(OWNERS, WEIGHTS, seed=1)
    numbers = [3000, 7, 123456789, 8, 2047, 2048, 0]
    assert [ahead(number) for number in numbers] == [mixed(number) for number in reversed(numbers)][::-1]
    other = Weighted(OWNERS, WEIGHTS, seed=2)
    assert [ahead(number) for number in range(50)] != [other(number) for number in range(50)]


def test_places_of_a_batch_are_not_tied_to_a_data_set() -> None:
    mixed = Weighted(["A", "B"], {"A": 1.0, "B": 1.0}, seed=0)
    first = Counter(mixed(number) for number in range(0, 400, 2))
    assert 70 < first[0] < 130


def test_equal_weights_of_one_data_set_are_passes() -> None:
    mixed = Weighted(["A"] * 4, {"A": 0.3}, seed=0)
    assert sorted(mixed(number) for number in range(BLOCK)) == sorted([0, 1, 2, 3] * (BLOCK // 4))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"A": 1.0, "B": 1.0}, "C has none"),
        ({"A": 1.0, "B": 0.0, "C": 1.0}, "B=0"),
        ({"A": 1.0, "B": float("nan"), "C": 1.0}, "B=nan"),
        ({**WEIGHTS, "D": 1.0}, "D is not read"),
    ],
)
def test_weights_that_do_not_fit_are_named(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Weighted(OWNERS, weights, seed=0)
