"""Crops at the stored resolution: where they lie, what they share, and how small volumes are padded."""

import numpy as np
import pytest
import torch

from nnssl.transforms.views import ViewSampling, plain_views

SIZE = (12, 12, 12)


def _places(shape: tuple[int, int, int], sampling: ViewSampling, *, draws: int, count: int = 2) -> np.ndarray:
    """Corners (draws, count, 3) of views, read from the coordinates that the volume holds."""
    axes = torch.meshgrid(*(torch.arange(side) for side in shape), indexing="ij")
    volume, generator = torch.stack(axes), torch.Generator().manual_seed(0)
    views = [plain_views(volume, SIZE, count=count, generator=generator, sampling=sampling) for _ in range(draws)]
    return torch.stack(views)[..., 0, 0, 0].numpy()


def test_views_are_crops_of_the_volume_that_are_not_resized() -> None:
    volume = torch.arange(20 * 16 * 14.0).view(1, 20, 16, 14)
    view = plain_views(volume, SIZE, count=1, generator=torch.Generator().manual_seed(0))[0]
    x, y, z = np.unravel_index(int(view[0, 0, 0, 0]), (20, 16, 14))
    assert view.equal(volume[:, x : x + 12, y : y + 12, z : z + 12])


def test_views_of_the_whole_volume_lie_everywhere_and_independently() -> None:
    places = _places((48, 30, 12), ViewSampling(), draws=600)
    assert places.min() == 0 and places[..., 0].max() == 36 and places[..., 1].max() == 18
    assert (places[..., 2] == 0).all()
    for axis, last in ((0, 36), (1, 18)):
        deviation = np.sqrt(((last + 1) ** 2 - 1) / 12)
        assert abs(places[:, :, axis].mean() - last / 2) < 4 * deviation / np.sqrt(1200)
        assert abs(np.corrcoef(places[:, 0, axis], places[:, 1, axis])[0, 1]) < 4 / np.sqrt(600)
    assert (np.abs(places[:, 0, 0] - places[:, 1, 0]) > 12).any()  # disjoint


def test_views_of_a_subvolume_share_what_smit_s_code_guarantees() -> None:
    places = _places((60, 60, 60), ViewSampling("subvolume"), draws=600)  # 16 for views of 12 = 128 for 96
    shared = 12 - np.abs(places[:, 0] - places[:, 1])
    assert shared.min() == 8
    part = shared.prod(1) / 12**3
    steps = np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
    assert abs(part.mean() - (1 - steps.mean() / 12) ** 3) < 4 * part.std() / np.sqrt(600)


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75, 1.0])
def test_views_share_at_least_the_overlap_of_every_axis(overlap: float) -> None:
    places = _places((40, 30, 13), ViewSampling("min_overlap", overlap=overlap), draws=200, count=3)
    shared = 12 - np.abs(places[:, :1] - places[:, 1:])
    assert shared.min() >= overlap * 12
    assert shared[..., 0].min() == overlap * 12


def test_a_smaller_volume_is_centred_between_zeros() -> None:
    views = plain_views(torch.ones(1, 5, 12, 40), SIZE, count=2, generator=torch.Generator().manual_seed(0))
    assert views.shape == (2, 1, *SIZE)
    assert views.sum((0, 1, 3, 4)).tolist() == [0] * 3 + [2 * 144] * 5 + [0] * 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "half"}, "view sampling 'half' is unknown; known: whole, subvolume, min_overlap"),
        ({"subvolume": 0.5}, "subvolume=0.5 must be 1 view or more"),
        ({"overlap": 1.5}, "overlap=1.5 must lie between 0 and 1"),
    ],
)
def test_a_wrong_sampling_says_what_is_allowed(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViewSampling(**settings)  # type: ignore[arg-type]
