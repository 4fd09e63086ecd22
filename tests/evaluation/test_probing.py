"""The linear probe: it reads out what is linear in the features, and nothing else."""

import numpy as np
import torch
from torch import Tensor, nn

from nnssl.encoders import build_encoder
from nnssl.encoders.base import Encoder, EncoderSpec, Features, IntensityRange
from nnssl.evaluation.probing import ProbeSettings, drawn_voxels, frozen_case, probe_scores, train_probe

QUICK = ProbeSettings(steps=80, batch_size=2, lr=0.1)


class Blocks(Encoder):
    """Mean intensity of every 2x2x2 block, in the encoder's range."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = EncoderSpec(
            "blocks", (1, 1), (2, 4), 4, (8, 8, 8), intensity=IntensityRange("window", 0, 1, (0.0, 1.0))
        )

    def forward(self, volume: Tensor, token_mask: Tensor | None = None) -> Features:
        fine = nn.functional.avg_pool3d(volume, 2)
        coarse = nn.functional.avg_pool3d(volume, 4)
        return Features([fine, coarse], coarse.mean((2, 3, 4)), {})


def _cases(number: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Scans of bright 2x2x2 blocks in noise; the bright blocks are the label."""
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for _ in range(number):
        blocks = torch.rand(1, 1, 3, 4, 5, generator=generator) < 0.3
        labels = nn.functional.interpolate(blocks.float(), scale_factor=2)[0, 0]
        noise = 0.1 * torch.rand(1, 6, 8, 10, generator=generator)
        cases.append((0.8 * labels[None] + noise, labels))
    return cases


def test_the_probe_finds_what_is_linear_in_the_features_on_cases_it_has_not_seen() -> None:
    encoder = Blocks()
    train = [frozen_case(encoder, *case) for case in _cases(6, 0)]
    test = [frozen_case(encoder, *case) for case in _cases(3, 1)]
    scores = probe_scores(train_probe(train, 2, seed=0, settings=QUICK), test, 2)
    assert scores.shape == (3, 1) and scores.min() > 0.8


def test_labels_that_have_nothing_to_do_with_the_features_are_not_found() -> None:
    encoder = Blocks()
    shuffled = [(volume, labels.flip(0)) for volume, labels in _cases(6, 0)]
    train = [frozen_case(encoder, *case) for case in shuffled[:4]]
    test = [frozen_case(encoder, *case) for case in shuffled[4:]]
    assert np.nanmean(probe_scores(train_probe(train, 2, seed=0, settings=QUICK), test, 2)) < 0.6


def test_a_scan_is_padded_for_the_encoder_and_scored_on_its_own_voxels() -> None:
    volume, labels = _cases(1, 0)[0]
    case = frozen_case(Blocks(), volume, labels)
    assert case.shape == (6, 8, 10) and case.labels.shape == (8, 8, 12) and case.maps[0].shape == (1, 4, 4, 6)
    assert int(case.labels.sum()) == int(labels.sum())


def test_a_transformer_gives_its_last_four_layers_and_is_left_unchanged() -> None:
    encoder = build_encoder("vit_tiny_8", native_crop=(16, 16, 16), options={"depth": 5, "dim": 24})
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    cases = [frozen_case(encoder, torch.rand(1, 10, 16, 12), torch.zeros(10, 16, 12)) for _ in range(2)]
    assert [tuple(one.shape) for one in cases[0].maps] == [(24, 2, 2, 2)] * 4
    train_probe(cases, 2, seed=0, settings=ProbeSettings(steps=2))
    assert all(value.equal(before[name]) for name, value in encoder.state_dict().items())


def test_the_same_seed_gives_the_same_probe() -> None:
    train = [frozen_case(Blocks(), *case) for case in _cases(5, 0)]
    first, again, other = (train_probe(train, 2, seed=seed, settings=QUICK) for seed in (0, 0, 1))
    assert first.weights[0].weight.equal(again.weights[0].weight)  # type: ignore[union-attr,operator,arg-type]
    assert not first.weights[0].weight.equal(other.weights[0].weight)  # type: ignore[union-attr,operator,arg-type]


def test_logits_at_drawn_voxels_are_those_of_the_whole_scan() -> None:
    cases = [frozen_case(Blocks(), *case) for case in _cases(2, 0)]
    probe = train_probe(cases, 2, seed=0, settings=ProbeSettings(steps=3, voxels=16, lr=0.1))
    case = cases[0]
    with torch.no_grad():
        whole = probe(case)[0]
        drawn = drawn_voxels(probe, case, 200, torch.Generator().manual_seed(3))
        at_voxels = probe.at_voxels(drawn.features)
    inside = whole[:, :6, :8, :10].flatten(1).T
    nearest = torch.cdist(at_voxels.double(), inside.double()).min(1).values
    assert nearest.max() < 1e-5 and at_voxels.std() > 0.01


def test_weights_of_drawn_voxels_estimate_sums_over_the_scan_of_every_label() -> None:
    labels = torch.zeros(6, 8, 10)
    labels[0, :2, :2], labels[3:, :, 5:] = 2, 1  # 4 and 120 of 480 voxels
    case = frozen_case(Blocks(), torch.rand(1, 6, 8, 10), labels)
    probe = train_probe([case], 3, seed=0, settings=ProbeSettings(steps=1, voxels=8))
    drawn = drawn_voxels(probe, case, 60_000, torch.Generator().manual_seed(0))
    for label, amount in enumerate((356, 120, 4)):
        np.testing.assert_allclose(drawn.weight[drawn.labels == label].sum(), amount, rtol=0.02)
        assert (drawn.labels == label).float().mean() > 1 / 6 - 0.01  # rare or not
