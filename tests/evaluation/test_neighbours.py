"""Nearest neighbours: hand-made votes, perfect and meaningless features."""

import numpy as np
import torch

from nnssl.evaluation.neighbours import VOXELS, nearest_labels, neighbour_scores, recalls
from nnssl.evaluation.probing import LinearProbe, ProbeCase


def case_of(labels: torch.Tensor, features: torch.Tensor) -> ProbeCase:
    """A case whose map has a cell per voxel."""
    x, y, z = labels.shape
    return ProbeCase([features], labels, (x, y, z))


def random_labels(seed: int, classes: int = 4) -> torch.Tensor:
    return torch.randint(classes, (12, 12, 12), generator=torch.Generator().manual_seed(seed))


def test_one_close_neighbour_outvotes_two_far_ones_and_not_at_a_high_temperature() -> None:
    angles = torch.tensor([0.1, 1.0, 1.1])  # from the query; cosines 0.995, 0.540, 0.454
    features = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[5.0], [0.1], [1.0]])  # length is nothing
    labels, query = torch.tensor([2, 1, 1]), torch.tensor([[3.0, 0.0]])
    assert nearest_labels(query, features, labels).tolist() == [2]
    assert nearest_labels(query, features, labels, temperature=10.0).tolist() == [1]
    assert nearest_labels(query, features, labels, temperature=10.0, neighbours=1).tolist() == [2]


def test_votes_equal_those_of_a_plain_loop() -> None:
    generator = np.random.default_rng(0)
    features, queries = generator.normal(size=(60, 5)), generator.normal(size=(25, 5))
    labels = generator.integers(0, 3, 60)
    expected = []
    for query in queries:
        cosines = [row @ query / np.linalg.norm(row) / np.linalg.norm(query) for row in features]
        nearest = np.argsort(cosines)[::-1][:7]
        votes = [sum(np.exp(cosines[i] / 0.07) for i in nearest if labels[i] == label) for label in range(3)]
        expected.append(int(np.argmax(votes)))
    found = nearest_labels(*map(torch.from_numpy, (queries, features, labels)), neighbours=7)
    assert found.tolist() == expected


def test_recall_is_per_label_and_unknown_where_the_truth_lacks_the_label() -> None:
    found, truth = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 1, 1, 1])
    np.testing.assert_allclose(recalls(found, truth, 3), [1.0, 0.75, np.nan])


def test_one_hot_features_are_read_without_error() -> None:
    labels = [random_labels(seed) for seed in range(4)]
    cases = [case_of(one, torch.nn.functional.one_hot(one, 4).permute(3, 0, 1, 2).half()) for one in labels]
    probe = LinearProbe(cases[:2], 4)
    assert neighbour_scores(probe, cases[:2], cases[2:], 4).tolist() == [1.0] * 4


def test_labels_that_have_nothing_to_do_with_the_features_stay_near_chance() -> None:
    generator = torch.Generator().manual_seed(9)
    cases = [case_of(random_labels(seed), torch.randn(6, 12, 12, 12, generator=generator).half()) for seed in range(8)]
    scores = neighbour_scores(LinearProbe(cases[:4], 4), cases[:4], cases[4:], 4)
    deviation = (0.25 * 0.75 / (4 * VOXELS)) ** 0.5  # of the mean over 4 x 256 voxels
    assert abs(scores.mean() - 0.25) < 4 * deviation
