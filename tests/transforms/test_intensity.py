"""Each intensity transform against its MONAI or scipy peer for fixed parameters."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from scipy import ndimage, special, stats
from torch import Tensor

from nnssl.transforms.blur import _blur_by_products, gaussian_smooth
from nnssl.transforms.intensity import (
    _sum_of_bent_lines,
    gamma_contrast,
    gaussian_noise,
    gaussian_sharpen,
    gibbs_noise,
    histogram_shift,
)
from tests.rules import uniform

monai = pytest.importorskip("monai.transforms", reason="MONAI is a test dependency (nnssl[dev])")

SHAPE = (2, 1, 14, 12, 9)
SIGMAS = torch.tensor([[0.3, 1.4, 0.8], [1.5, 0.25, 0.6]])


def _volumes(border: int = 0) -> Tensor:
    volumes = torch.from_numpy(uniform("volumes", SHAPE, 0.1, 0.9))
    return torch.nn.functional.pad(volumes, [border] * 6)


def test_contrast_equals_monai() -> None:
    volumes, gammas = _volumes(), [0.6, 1.8]
    peers = [monai.AdjustContrast(gamma)(volume) for gamma, volume in zip(gammas, volumes, strict=True)]
    torch.testing.assert_close(gamma_contrast(volumes, torch.tensor(gammas)), torch.stack(peers))


def test_histogram_shift_equals_monai() -> None:
    volumes, peers, points = _volumes(), [], []
    for seed, volume in enumerate(volumes):
        peer = monai.RandHistogramShift(num_control_points=10, prob=1.0).set_random_state(seed)
        peers.append(peer(volume))
        points.append(torch.from_numpy(peer.floating_control_points))
    torch.testing.assert_close(histogram_shift(volumes, torch.stack(points)), torch.stack(peers), atol=1e-6, rtol=1e-5)


def test_histogram_shift_leaves_a_constant_sample_alone() -> None:
    volumes = torch.full((1, 1, 3, 3, 3), 0.4)
    shifted = histogram_shift(volumes, torch.tensor([[0.0, 0.9, 1.0]]))
    torch.testing.assert_close(shifted, volumes)


def test_noise_has_the_deviation_of_its_sample() -> None:
    volumes, sigma = torch.full((2, 1, 30, 30, 30), 0.5), torch.tensor([0.001, 0.1])
    noise = gaussian_noise(volumes, sigma, torch.tensor([0, 1])) - volumes
    torch.testing.assert_close(noise.flatten(1).std(1), sigma, rtol=0.03, atol=0)


def test_smoothing_equals_monai_on_a_background_border() -> None:
    volumes = _volumes(border=7)  # there zero padding and repetition of the border are the same
    peers = [monai.GaussianSmooth(sigma.tolist())(volume) for sigma, volume in zip(SIGMAS, volumes, strict=True)]
    torch.testing.assert_close(gaussian_smooth(volumes, SIGMAS), torch.stack(peers), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("sides", [SHAPE[2:], (70, 33, 65)])  # a CPU smooths long sides in pieces
def test_smoothing_repeats_the_border_as_scipy_does(sides: tuple[int, ...]) -> None:
    volumes = torch.from_numpy(uniform("smoothing", (2, 1, *sides), 0.0, 1.0))
    for volume, sigmas, found in zip(volumes, SIGMAS.tolist(), gaussian_smooth(volumes, SIGMAS), strict=True):
        expected = volume[0].double().numpy()
        for axis, sigma in enumerate(sigmas):
            steps = np.arange(-int(4 * sigma + 0.5), int(4 * sigma + 0.5) + 1)
            kernel = special.ndtr((steps + 0.5) / sigma) - special.ndtr((steps - 0.5) / sigma)
            expected = ndimage.correlate1d(expected, kernel, axis=axis, mode="nearest")
        np.testing.assert_allclose(found[0], expected, atol=1e-6)


def test_histogram_shift_interpolates_between_its_points() -> None:
    volumes = torch.tensor([[0.2, 0.3, 0.5, 0.6, 1.0], [0.0, 0.1, 0.5, 0.9, 0.5]]).view(2, 1, 5, 1, 1)
    points = torch.tensor([[0.0, 0.8, 1.0], [0.0, 0.1, 1.0]])
    expected = [np.interp(row, np.linspace(row.min(), row.max(), 3), row.min() + np.ptp(row) * points[i].numpy())
                for i, row in enumerate(volumes.view(2, 5).numpy())]  # fmt: skip
    np.testing.assert_allclose(histogram_shift(volumes, points).view(2, 5), np.stack(expected), atol=1e-6)


def test_smoothing_a_constant_volume_changes_nothing() -> None:
    volumes = torch.full((2, 1, 5, 8, 3), 0.7)  # kernels wider than the volume, too
    torch.testing.assert_close(gaussian_smooth(volumes, SIGMAS), volumes, atol=1e-4, rtol=0)


def test_sharpening_equals_monai_on_a_background_border() -> None:
    volumes, alpha = _volumes(border=9), torch.tensor([10.0, 30.0])
    first, second = torch.tensor([[0.5, 0.8, 1.0], [0.6, 0.9, 0.7]]), torch.tensor([[0.5, 0.6, 0.9], [0.55, 0.5, 0.7]])
    peers = [
        monai.GaussianSharpen(one.tolist(), two.tolist(), float(a))(volume)
        for one, two, a, volume in zip(first, second, alpha, volumes, strict=True)
    ]
    found = gaussian_sharpen(volumes, (first, second), alpha)
    torch.testing.assert_close(found, torch.stack(peers), atol=5e-5, rtol=1e-5)
    assert found.max() > 1.5  # by design not clipped here


@pytest.mark.parametrize("shape", [(2, 1, 12, 12, 12), (2, 1, 9, 12, 7), (2, 2, 8, 6, 10)])
def test_gibbs_noise_equals_monai(shape: tuple[int, ...]) -> None:
    volumes, alphas = torch.from_numpy(uniform("gibbs", shape, 0, 1)), [0.33, 0.71]
    peers = [monai.GibbsNoise(alpha)(volume) for alpha, volume in zip(alphas, volumes, strict=True)]
    torch.testing.assert_close(gibbs_noise(volumes, torch.tensor(alphas)), torch.stack(peers), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.3, 0.55, 0.9, 0.99, 1.0])  # from all of k-space to nothing
def test_gibbs_noise_equals_monai_for_every_radius(alpha: float) -> None:
    volume = torch.from_numpy(uniform("gibbs radius", (1, 1, 14, 10, 11), 0, 1))
    found, peer = gibbs_noise(volume, torch.tensor([alpha])), monai.GibbsNoise(alpha)(volume[0])
    torch.testing.assert_close(found[0], peer, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_smoothing_keeps_the_type_of_the_volumes(kind: torch.dtype) -> None:
    volumes = torch.from_numpy(uniform("smoothing", (2, 2, 9, 20, 33), 0.0, 1.0)).to(kind)
    aim = _blur_by_products(volumes.double(), SIGMAS.tolist())
    for found in (gaussian_smooth(volumes, SIGMAS), gaussian_smooth(volumes, SIGMAS, out=volumes)):
        assert found.dtype == kind
        torch.testing.assert_close(found.double(), aim, atol=max(1e-6, torch.finfo(kind).eps), rtol=0)
    assert found is volumes


def test_whole_matrices_smooth_as_their_pieces_do() -> None:
    volumes = torch.from_numpy(uniform("smoothing", (2, 2, 33, 20, 9), 0.0, 1.0))
    torch.testing.assert_close(
        _blur_by_products(volumes, SIGMAS.tolist()), gaussian_smooth(volumes, SIGMAS), atol=1e-6, rtol=0
    )


def test_both_ways_to_shift_a_histogram_agree() -> None:
    volumes = _volumes()
    points = torch.tensor([[0.0, 0.3, 0.3, 0.9, 1.0], [0.2, 0.2, 0.2, 0.5, 0.7]])  # with flat parts
    torch.testing.assert_close(
        _sum_of_bent_lines(volumes, points), histogram_shift(volumes, points), atol=1e-6, rtol=1e-5
    )


def test_noise_is_normal_and_new_for_every_seed() -> None:
    still, sigma = torch.zeros(1, 1, 50, 41, 97), torch.ones(1)  # in two pieces, no multiple of 4 in the last
    first, again, other = (gaussian_noise(still, sigma, torch.tensor([seed])).flatten().double() for seed in (1, 1, 2))
    assert first.equal(again)
    for noise in (first, other):
        assert stats.kstest(noise.numpy(), "norm").pvalue > 0.01
        assert abs(noise.var().item() - 1) < 0.02 and abs((noise**4).mean().item() - 3) < 0.15
        assert abs((noise[1:] * noise[:-1]).mean().item()) < 0.02
    assert abs((first * other).mean().item()) < 0.02


@pytest.mark.parametrize("name", ["contrast", "histogram", "smooth", "sharpen", "gibbs", "noise"])
def test_a_transform_in_place_makes_the_same_numbers(name: str) -> None:
    volumes, rows = _volumes(), torch.tensor([0.5, 0.7])
    transforms: dict[str, Callable[..., Tensor]] = {
        "contrast": partial(gamma_contrast, gamma=rows),
        "histogram": partial(histogram_shift, control_points=torch.tensor([[0.0, 0.2, 1.0]] * 2)),
        "smooth": partial(gaussian_smooth, sigma=SIGMAS),
        "sharpen": partial(gaussian_sharpen, sigma=(SIGMAS, SIGMAS), alpha=rows),
        "gibbs": partial(gibbs_noise, alpha=rows),
        "noise": partial(gaussian_noise, sigma=rows, seeds=torch.tensor([0, 1])),
    }
    expected = transforms[name](volumes)
    assert not expected.equal(volumes)
    assert transforms[name](volumes, out=volumes) is volumes and volumes.equal(expected)


def test_a_result_that_would_be_lost_is_refused() -> None:
    volumes = _volumes()
    with pytest.raises(ValueError, match=r"out of shape .* strides .*: expected a contiguous tensor"):
        gaussian_smooth(volumes, SIGMAS, out=volumes.transpose(2, 3).contiguous().transpose(2, 3))


def test_contrast_keeps_the_ends_of_the_range() -> None:
    volumes = torch.tensor([0.0, 0.25, 1.0]).view(1, 1, 3, 1, 1)
    torch.testing.assert_close(gamma_contrast(volumes, torch.tensor([2.0])).flatten(), torch.tensor([0.0, 0.0625, 1.0]))


def test_transforms_leave_their_input_alone() -> None:
    volumes = _volumes()
    before = volumes.clone()
    rows = torch.tensor([0.5, 0.7])
    gamma_contrast(volumes, rows)
    histogram_shift(volumes, torch.tensor([[0.0, 0.2, 1.0]] * 2))
    gaussian_sharpen(volumes, (SIGMAS, SIGMAS), rows)
    gibbs_noise(volumes, rows)
    gaussian_noise(volumes, rows, torch.tensor([0, 1]))
    assert volumes.equal(before)
