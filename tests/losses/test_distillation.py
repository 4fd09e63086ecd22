"""Distillation losses against the golden numbers and against float64 re-derivations."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nnssl.losses.distillation import (
    centred_softmax,
    dino_aims,
    ibot_aims,
    koleo_loss,
    mean_logits,
    moved_centre,
    sinkhorn_knopp,
)
from nnssl.losses.prototypes import Aims, prototype_loss
from tests.rules import normal

B, K, L, N = 4, 48, 3, 27
Golden = Callable[[str], Any]


def _normal(key: str, shape: tuple[int, ...], scale: float = 0.3, shift: float = 0.0) -> Tensor:
    return torch.from_numpy(normal(key, shape, scale, shift))


def _student() -> tuple[Tensor, Tensor]:
    return _normal("student_global_logits", (2 * B, K)), _normal("student_local_logits", (L * B, K))


def _loss(logits: Tensor, aims: Aims) -> Tensor:
    """Golden logits stand for rows: their products with unit vectors are the logits again."""
    prototypes = torch.ones(K, 1, dtype=logits.dtype), torch.eye(K, dtype=logits.dtype)
    return prototype_loss(logits, prototypes, aims=aims, temperature=0.1)


def _dino_losses(targets: Tensor, student: Tensor, local: Tensor) -> tuple[Tensor, Tensor]:
    """The local and the global part."""
    targets, chosen, weights = dino_aims(targets, len(local) // B)
    parts = [slice(2 * B, None), slice(2 * B)]
    rows = torch.cat([student, local])
    first, second = (_loss(rows[part], Aims(targets, chosen[part], weights[part])) for part in parts)
    return first, second


def _reference_cross_entropy(targets: np.ndarray, logits: np.ndarray) -> np.ndarray:
    scaled = logits.astype(np.float64) / 0.1
    return -(targets * (scaled - np.log(np.exp(scaled).sum(-1, keepdims=True)))).sum(-1)


def _reference_sinkhorn(logits: np.ndarray, temperature: float, iterations: int = 3) -> np.ndarray:
    """Alternating normalisation in the log domain, float64, prototypes in rows."""
    log_q = (logits.astype(np.float64) / temperature).T
    for _ in range(iterations):
        log_q = log_q - np.logaddexp.reduce(log_q, axis=1, keepdims=True) - np.log(log_q.shape[0])
        log_q = log_q - np.logaddexp.reduce(log_q, axis=0, keepdims=True) - np.log(log_q.shape[1])
    return np.exp(log_q + np.log(log_q.shape[1])).T


@pytest.mark.parametrize("temperature", [0.04, 0.0517, 0.07])
def test_sinkhorn_targets_and_dino_loss_equal_the_reference(golden: Golden, temperature: float) -> None:
    stored = golden("g05_dino_losses.npz")
    targets = sinkhorn_knopp(_normal("teacher_cls_logits", (2 * B, K)), temperature)
    np.testing.assert_allclose(targets.numpy(), stored[f"sinkhorn.dino.temp{temperature}"], atol=2e-6)
    local, overall = _dino_losses(targets, *_student())
    found = [local.item(), overall.item(), (local + overall).item()]
    np.testing.assert_allclose(found, stored[f"dino.sinkhorn.temp{temperature}.local_global_total"], rtol=1e-5)


def test_gradient_of_the_global_term_equals_the_reference(golden: Golden) -> None:
    stored = golden("g05_dino_losses.npz")
    student, local = _student()
    student.requires_grad_()
    targets = sinkhorn_knopp(_normal("teacher_cls_logits", (2 * B, K)), 0.07)
    _dino_losses(targets, student, local)[1].backward()
    np.testing.assert_allclose(student.grad, stored["dino.grad_student_global.temp0.07"], atol=1e-6)


def test_softmax_centring_over_three_steps_equals_the_reference(golden: Golden) -> None:
    stored = golden("g05_dino_losses.npz")
    centre = torch.zeros(1, K)
    for step in range(3):
        teacher = _normal(f"teacher_cls_logits.step{step}", (2 * B, K), 0.3, 0.2)
        np.testing.assert_allclose(centre, stored[f"centering.dino.step{step}.center_used"], atol=1e-6)
        targets = centred_softmax(teacher.clone(), centre, 0.05)
        np.testing.assert_allclose(targets, stored[f"centering.dino.step{step}.targets"], atol=2e-6)
        found = [part.item() for part in _dino_losses(targets, *_student())]
        np.testing.assert_allclose(found, stored[f"centering.dino.step{step}.local_global"], rtol=1e-5)
        centre = moved_centre(centre, mean_logits(teacher.sum(0, keepdim=True), len(teacher)), 0.9)
    np.testing.assert_allclose(centre, stored["centering.dino.center_final"], atol=1e-6)


def _ibot_mask() -> Tensor:
    mask = _normal("mask", (2 * B, N), 1.0) > 0.3
    mask[[1, 2 * B - 1]] = False
    return mask


def _mask_weights(mask: Tensor) -> Tensor:
    return (1 / mask.sum(1).clamp_min(1))[:, None].expand_as(mask)[mask]


@pytest.mark.parametrize("temperature", [0.04, 0.07])
def test_ibot_with_sinkhorn_equals_the_reference(golden: Golden, temperature: float) -> None:
    stored = golden("g05_dino_losses.npz")
    mask = _ibot_mask()
    np.testing.assert_array_equal(mask, stored["ibot.mask"])
    weights = _mask_weights(mask)
    np.testing.assert_allclose(weights, stored["ibot.masks_weight"], rtol=1e-6)
    targets = sinkhorn_knopp(_normal("teacher_patch_logits", (2 * B, N, K))[mask], temperature)
    np.testing.assert_allclose(targets, stored[f"sinkhorn.ibot.temp{temperature}"], atol=2e-6)
    student = _normal("student_patch_logits", (2 * B, N, K))[mask]
    loss = _loss(student, ibot_aims(targets, weights, 2 * B)).item()
    np.testing.assert_allclose([loss, loss], stored[f"ibot.sinkhorn.temp{temperature}.loss"], rtol=1e-5)


def test_ibot_with_softmax_centring_equals_the_reference(golden: Golden) -> None:
    stored = golden("g05_dino_losses.npz")
    mask, centre = _ibot_mask(), torch.zeros(1, K)
    student = _normal("student_patch_logits", (2 * B, N, K))[mask]
    for step in range(3):
        teacher = _normal(f"teacher_patch_logits.step{step}", (2 * B, N, K), 0.3, 0.2)[mask]
        np.testing.assert_allclose(centre[None], stored[f"centering.ibot.step{step}.center_used"], atol=1e-6)
        targets = centred_softmax(teacher.clone(), centre, 0.05)
        np.testing.assert_allclose(targets[:4], stored[f"centering.ibot.step{step}.targets_head"], atol=2e-6)
        loss = _loss(student, ibot_aims(targets, _mask_weights(mask), 2 * B)).item()
        np.testing.assert_allclose([loss], stored[f"centering.ibot.step{step}.loss"], rtol=1e-5)
        centre = moved_centre(centre, mean_logits(teacher.sum(0, keepdim=True), len(teacher)), 0.9)
    np.testing.assert_allclose(centre[None], stored["centering.ibot.center_final"], atol=1e-6)


def test_koleo_and_its_gradient_equal_the_reference(golden: Golden) -> None:
    stored = golden("g05_dino_losses.npz")
    features = _normal("koleo.input", (2 * B + 2, 24), 1.0).requires_grad_()
    loss = koleo_loss(features)
    loss.backward()
    np.testing.assert_allclose([loss.item()], stored["koleo.loss_all"], rtol=1e-5)
    np.testing.assert_allclose(features.grad, stored["koleo.grad"], atol=1e-6)
    halves = 0.1 * sum(koleo_loss(half) for half in features.detach().chunk(2))
    np.testing.assert_allclose([float(halves)], stored["koleo.loss_two_views_weighted"], rtol=1e-5)
    duplicated = features.detach().clone()
    duplicated[1] = duplicated[0]
    np.testing.assert_allclose([koleo_loss(duplicated).item()], stored["koleo.loss_duplicate_rows_0_1"], rtol=1e-5)


def test_dino_is_the_mean_over_all_pairs_of_views() -> None:
    teacher = normal("teacher", (2 * B, K), 0.3)
    student, local = normal("student", (2 * B, K), 0.3), normal("local", (L * B, K), 0.3)
    targets = _reference_sinkhorn(teacher, 0.05)
    first, second = targets[:B], targets[B:]
    pairs = [_reference_cross_entropy(second, student[:B]).mean(), _reference_cross_entropy(first, student[B:]).mean()]
    pairs += [_reference_cross_entropy(view, part).mean() for view in (first, second) for part in np.split(local, L)]
    swapped = sinkhorn_knopp(torch.from_numpy(teacher).double(), 0.05).roll(B, 0)
    parts = _dino_losses(swapped, torch.from_numpy(student).double(), torch.from_numpy(local).double())
    assert len(pairs) == 2 + 2 * L
    assert sum(parts).item() == pytest.approx(np.mean(pairs), rel=1e-12)


def test_ibot_is_the_mean_over_crops_of_the_mean_over_masked_tokens() -> None:
    mask = _ibot_mask().numpy()
    teacher, student = normal("t", (2 * B, N, K), 0.3), normal("s", (2 * B, N, K), 0.3)
    targets = _reference_sinkhorn(teacher[mask], 0.05)
    crop_of_row = np.nonzero(mask)[0]
    entropies = _reference_cross_entropy(targets, student[mask])
    expected = sum(entropies[crop_of_row == crop].mean() for crop in set(crop_of_row.tolist())) / (2 * B)
    weights = _mask_weights(torch.from_numpy(mask)).double()
    found = _loss(torch.from_numpy(student[mask]).double(), ibot_aims(torch.from_numpy(targets), weights, 2 * B))
    assert found.item() == pytest.approx(expected, rel=1e-7)  # the weights were made in float32


def test_koleo_is_minus_the_mean_log_distance_to_the_nearest_neighbour() -> None:
    features = normal("x", (7, 5)).astype(np.float64)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    distances = np.linalg.norm(unit[:, None] - unit[None] + 1e-8, axis=-1)
    np.fill_diagonal(distances, np.inf)
    expected = -np.log(distances.min(1) + 1e-8).mean()
    assert koleo_loss(torch.from_numpy(features)).item() == pytest.approx(expected, rel=1e-10)


def test_sinkhorn_is_exact_where_exp_of_the_logits_overflows() -> None:
    logits = normal("large", (6, 9), 1.0, 5.0)  # / 0.04 = up to 180; exp overflows float32 beyond 88
    targets = sinkhorn_knopp(torch.tensor(logits), 0.04)
    np.testing.assert_allclose(targets, _reference_sinkhorn(logits, 0.04), atol=1e-5)


def test_sinkhorn_stays_finite_for_absurd_logits() -> None:
    targets = sinkhorn_knopp(torch.from_numpy(normal("absurd", (6, 9), 300.0)), 0.04)
    assert bool(targets.isfinite().all())


def test_sinkhorn_uses_every_prototype_equally_after_many_iterations() -> None:
    targets = sinkhorn_knopp(torch.from_numpy(normal("q", (12, 5), 0.3)), 0.1, iterations=200)
    np.testing.assert_allclose(targets.sum(1), np.ones(12), rtol=1e-5)
    np.testing.assert_allclose(targets.sum(0), np.full(5, 12 / 5), rtol=1e-4)


def test_no_masked_token_gives_a_zero_loss_with_a_gradient() -> None:
    logits = torch.zeros(0, K, requires_grad=True)
    targets = sinkhorn_knopp(logits.detach(), 0.05)
    loss = _loss(logits, ibot_aims(targets, torch.zeros(0), 2))
    loss.backward()
    assert targets.shape == (0, K) and loss.item() == 0.0 and logits.grad is not None


def test_one_image_has_no_neighbour_and_no_koleo_loss() -> None:
    features = torch.ones(1, 4, requires_grad=True)
    loss = koleo_loss(features)
    loss.backward()
    assert loss.item() == 0.0 and features.grad is not None and not features.grad.any()


def test_losses_under_autocast_equal_losses_without() -> None:
    features = _normal("f", (6, 16), 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = koleo_loss(features)
    assert inside.dtype == torch.float32 and inside.item() == koleo_loss(features).item()
