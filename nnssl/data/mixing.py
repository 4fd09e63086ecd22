"""Which image a sample of the endless stream shows: every image once per pass, or data sets mixed by weight."""

from collections.abc import Mapping, Sequence
from math import floor

import numpy as np

from nnssl.data.seeds import derived_seed

_ORDER, _BLOCK = 0, 4  # what a derived seed is for; samples draw from 1, training from 2 and 3
BLOCK = 1024  # samples within which weighted data sets are shuffled


class Passes:
    """All images pass by once in a new seeded order, again and again: equal chances for every image.

    Args:
        images: how many there are.
        seed: with the number of the pass it decides the order; several numbers make one seed.
    """

    def __init__(self, images: int, *seed: int) -> None:
        self.images, self.seed = images, seed
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def __call__(self, number: int) -> int:
        """Index of the image that sample `number` shows."""
        turn, position = divmod(number, self.images)
        if self._order[0] != turn:
            self._order = turn, _permutation(self.images, *self.seed, turn)
        return int(self._order[1][position])


class Weighted:
    """Each data set gives its share of the samples, whatever its size; within it, images come in passes.

    Shares hold exactly over any run of samples, to within a sample or two per data set and block of 1,024 samples.

    Args:
        owners: the data set of each image.
        weights: of every data set among them, above 0; only their ratios count.
        seed: of the run.

    Raises:
        ValueError: a data set has no weight, a weight has no data set or is not above 0.
    """

    def __init__(self, owners: Sequence[str], weights: Mapping[str, float], seed: int) -> None:
        self.datasets = list(dict.fromkeys(owners))
        check_weights(weights, self.datasets)
        self.images = [[i for i, owner in enumerate(owners) if owner == name] for name in self.datasets]
        self.passes = [Passes(len(images), seed, _ORDER, k) for k, images in enumerate(self.images)]
        left = np.cumsum([weights[name] for name in reversed(self.datasets)])[::-1]
        self.shares = [weights[name] / rest for name, rest in zip(self.datasets, left.tolist(), strict=True)]
        self.seed = seed
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def __call__(self, number: int) -> int:
        """Index of the image that sample `number` shows."""
        block, position = divmod(number, BLOCK)
        if self._order[0] != block:  # or a batch of two would always hold one data set first and the other second
            self._order = block, _permutation(BLOCK, self.seed, _BLOCK, block)
        turn = block * BLOCK + int(self._order[1][position])
        for images, passes, share in zip(self.images, self.passes, self.shares, strict=True):
            before = floor(turn * share)  # of the turns so far, this data set took so many
            if floor((turn + 1) * share) > before:
                return images[passes(before)]
            turn -= before  # the other turns go to the data sets that follow
        raise AssertionError("the last share is 1")


def check_weights(weights: Mapping[str, float], datasets: Sequence[str]) -> None:
    """One weight above 0 for each data set and for no other, or a ValueError that names them."""
    wrong = [f"{name}={weight:g}" for name, weight in weights.items() if not 0 < weight < float("inf")]
    wrong += [f"{name} is not read" for name in weights if name not in datasets]
    wrong += [f"{name} has none" for name in datasets if name not in weights]
    if wrong:
        raise ValueError(
            f"weights of data sets: {', '.join(wrong)}; give every data set of the run a weight above 0: "
            f"{' '.join(f'{name}=1' for name in datasets)}"
        )


def _permutation(length: int, *seed: int) -> np.ndarray:
    return np.random.default_rng(derived_seed(*seed)).permutation(length)
