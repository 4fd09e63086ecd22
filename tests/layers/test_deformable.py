"""Deformable attention against golden numbers of both axis orders, and against a hand-written sampler."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from nnssl.layers.deformable import DeformableAttention, cell_centres, octant_offsets, sample_points
from tests.rules import golden_error, normal, rule_tensor, uniform

Golden = Callable[[str], Any]
TOLERANCE = 1e-5


def _core_inputs(stored: Any, name: str) -> tuple[torch.Tensor, list[Any], torch.Tensor, torch.Tensor]:
    grids = [tuple(int(side) for side in row) for row in stored[f"{name}.shapes"]]
    weights = torch.from_numpy(stored[f"{name}.weights"])
    batch, queries, heads, levels, points = weights.shape
    channels = stored[f"{name}.out_hwd"].shape[-1] // heads
    cells = sum(x * y * z for x, y, z in grids)
    value = torch.from_numpy(normal(f"{name}.value", (batch, cells, heads, channels)))
    shape = (batch, queries, heads, levels, points, 3)
    return value, grids, torch.from_numpy(uniform(f"{name}.locations", shape, -0.1, 1.1)), weights


@pytest.mark.parametrize("name", ["cubic", "noncubic", "single"])
def test_sampling_agrees_with_the_golden_numbers_in_both_orders(golden: Golden, name: str) -> None:
    stored = golden("g03_msda3d.npz")
    value, grids, locations, weights = _core_inputs(stored, name)
    correct = sample_points(value, grids, locations.flip(-1), weights)
    reference = sample_points(value, grids, locations, weights)
    assert golden_error(stored, f"{name}.out_hwd", correct.numpy()) < TOLERANCE
    assert golden_error(stored, f"{name}.out_reference_order", reference.numpy()) < TOLERANCE


def test_initial_offsets_agree_with_the_golden_numbers(golden: Golden) -> None:
    assert np.array_equal(octant_offsets(levels=3).numpy(), golden("g03_msda3d.npz")["init.offset_bias"])


@pytest.mark.parametrize(("order", "name"), [("correct", "correct"), ("reference", "compat")])
@pytest.mark.parametrize(("tag", "grid"), [("cubic", (2, 2, 2)), ("noncubic", (2, 3, 1))])
@pytest.mark.parametrize("role", ["injector", "extractor"])
def test_module_agrees_with_the_golden_numbers(
    golden: Golden, role: str, tag: str, grid: Any, order: str, name: str
) -> None:
    stored = golden("g03_msda3d.npz")
    coarse, fine = [grid], [tuple(scale * side for side in grid) for scale in (4, 2, 1)]
    queries, features = (coarse, fine) if role == "injector" else (fine, coarse)
    module = DeformableAttention(64, 64, value_dim=16, levels=len(features), offset_order=order).eval()
    for key, parameter in module.named_parameters():
        parameter.data = torch.from_numpy(rule_tensor(f"attn_{role}.{key}", tuple(parameter.shape)))
    centres = torch.cat([cell_centres(one, order) for one in queries])
    feature_cells = sum(int(np.prod(one)) for one in features)
    query = torch.from_numpy(normal(f"{tag}.{role}.query", (1, len(centres), 64)))
    feature = torch.from_numpy(normal(f"{tag}.{role}.feat", (1, feature_cells, 64)))
    with torch.no_grad():
        output = module(query, centres, feature, features)
    assert golden_error(stored, f"module.{tag}.{role}.{name}", output.numpy()) < TOLERANCE


def test_reference_points_agree_with_the_golden_numbers(golden: Golden) -> None:
    stored = golden("g03_msda3d.npz")
    centres = torch.cat([cell_centres((2 * s, 3 * s, s), "reference") for s in (4, 2, 1)])
    assert golden_error(stored, "module.noncubic.refpoints_compat", centres[None, :, None].numpy()) < 1e-6


def test_sampling_agrees_with_scipy_on_a_non_cubic_volume() -> None:
    generator = torch.Generator().manual_seed(0)
    grid, queries = (5, 3, 7), 11
    volume = torch.randn(grid, generator=generator)
    points = torch.rand(queries, 3, generator=generator) * 1.2 - 0.1  # X, Y, Z fractions, some outside
    sampled = sample_points(
        volume.reshape(1, -1, 1, 1),
        [grid],
        points.flip(-1).view(1, queries, 1, 1, 1, 3),
        torch.ones(1, queries, 1, 1, 1),
    )
    voxels = (points * torch.tensor(grid) - 0.5).numpy().T
    padded = np.pad(volume.numpy(), 2)
    expected = map_coordinates(padded, voxels + 2, order=1, mode="constant")
    np.testing.assert_allclose(sampled.flatten().numpy(), expected, atol=1e-5)


def test_a_query_reads_its_own_place() -> None:
    """With zero offsets each query gets the value at its own (x, y, z), on a non-cubic grid."""
    grid = (4, 2, 3)
    module = DeformableAttention(8, 8, value_dim=8, levels=1)
    with torch.no_grad():
        module.sampling_offsets.bias.zero_()
        for layer in (module.value_proj, module.output_proj):
            layer.weight.copy_(torch.eye(8))
    features = torch.randn(1, 24, 8, generator=torch.Generator().manual_seed(0))
    output = module(torch.zeros(1, 24, 8), cell_centres(grid), features, [grid])
    torch.testing.assert_close(output, features)


def test_gradients_reach_offsets_and_values() -> None:
    module = DeformableAttention(8, 8, value_dim=8, levels=1)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 24, 8, generator=generator)
    output = module(torch.randn(1, 24, 8, generator=generator), cell_centres((4, 2, 3)), features, [(4, 2, 3)])
    output.square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_an_unknown_order_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="known: correct, reference"):
        DeformableAttention(8, 8, value_dim=8, levels=1, offset_order="wdh")


def test_a_value_width_that_the_heads_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        DeformableAttention(8, 8, value_dim=12, levels=1)
