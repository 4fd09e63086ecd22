"""InfoNCE against the reference's numbers, a float64 re-derivation, and what two processes must agree on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing, nn

from nnssl.losses.contrastive import info_nce, two_view_info_nce
from tests.rules import normal

PROJECTIONS, WIDTH = 5, 4
HANDMADE = ([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [[1.0, 0.5], [-0.5, 1.0], [1.0, -1.0]])


def _by_definition(first: np.ndarray, second: np.ndarray, temperature: float) -> float:
    """Equation 1, row by row."""
    rows = np.concatenate([first, second]).astype(np.float64)
    count, total = len(rows), 0.0
    for anchor in range(count):
        cosines = [row @ rows[anchor] / np.linalg.norm(row) / np.linalg.norm(rows[anchor]) for row in rows]
        positive = cosines[(anchor + len(first)) % count]
        others = sum(np.exp(cosines[other] / temperature) for other in range(count) if other != anchor)
        total -= np.log(np.exp(positive / temperature) / others)
    return total / count


@pytest.mark.parametrize("temperature", ["0.5", "0.1", "0.07"])
@pytest.mark.parametrize("shape", ["3x2", "4x16", "9x32"])
def test_loss_and_gradient_are_the_reference_s(golden: Callable[[str], Any], shape: str, temperature: str) -> None:
    stored = golden("g08_contrastive_rotation_cutout.npz")
    rows, width = (int(part) for part in shape.split("x"))
    first = torch.from_numpy(normal(f"a.{shape}", (rows, width))).requires_grad_()
    loss = info_nce(first, torch.from_numpy(normal(f"b.{shape}", (rows, width))), float(temperature))
    loss.backward()
    name = f"ntxent.{shape}.t{temperature}"
    assert loss.item() == pytest.approx(stored[f"{name}.loss"][0], rel=1e-5)
    assert first.grad is not None
    np.testing.assert_allclose(first.grad, stored[f"{name}.grad_a"], atol=2e-6)


@pytest.mark.parametrize(("temperature", "expected"), [(0.5, 1.371141), (0.1, 3.029130)])
def test_a_handmade_case_has_the_published_value(temperature: float, expected: float) -> None:
    first, second = (torch.tensor(rows) for rows in HANDMADE)
    assert info_nce(first, second, temperature).item() == pytest.approx(expected, rel=1e-6)


def test_float64_equals_the_definition_written_out() -> None:
    first, second = normal("nce first", (6, 8)), normal("nce second", (6, 8))
    loss = info_nce(torch.from_numpy(first).double(), torch.from_numpy(second).double(), 0.2)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(_by_definition(first, second, 0.2), rel=1e-12)


def test_equal_projections_say_nothing() -> None:
    rows = torch.ones(5, 3)
    assert info_nce(rows, rows, 0.5).item() == pytest.approx(np.log(2 * 5 - 1))


def test_autocast_and_bf16_projections_still_give_a_float32_loss() -> None:
    first, second = (torch.from_numpy(normal(name, (6, 8))) for name in ("first", "second"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert info_nce(first, second, 0.1).item() == info_nce(first, second, 0.1).item()
        assert info_nce(first.bfloat16(), second.bfloat16(), 0.1).dtype == torch.float32
    assert info_nce(first, second, 0.1).dtype == torch.float32


def test_two_views_are_the_two_halves_of_a_stack() -> None:
    rows = torch.from_numpy(normal("stack", (8, 5)))
    assert two_view_info_nce(rows, 0.5).equal(info_nce(rows[:4], rows[4:], 0.5))


def _head() -> nn.Linear:
    head = nn.Linear(WIDTH, PROJECTIONS)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(normal("head.weight", (PROJECTIONS, WIDTH))))
        head.bias.copy_(torch.from_numpy(normal("head.bias", (PROJECTIONS,))))
    return head


def _views() -> torch.Tensor:
    """(2, 6, WIDTH): two views of six samples."""
    return torch.from_numpy(normal("views", (2, 6, WIDTH)))


def _one_of_two(rank: int, folder: str, scope: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    head, own = _head(), _views().chunk(2, dim=1)[rank]
    loss = two_view_info_nce(head(own.flatten(0, 1)), 0.3, scope)
    loss.backward()
    for parameter in head.parameters():
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad)  # data-parallel training averages
        parameter.grad /= 2
    torch.save((loss.detach(), head.weight.grad), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["global", "process"])
def test_two_processes_have_loss_and_gradient_of_the_joint_batch(tmp_path: Path, scope: str) -> None:
    multiprocessing.spawn(_one_of_two, args=(str(tmp_path), scope), nprocs=2)
    head = _head()
    batches = [_views()] if scope == "global" else list(_views().chunk(2, dim=1))
    losses = [two_view_info_nce(head(batch.flatten(0, 1)), 0.3) for batch in batches]
    torch.stack(losses).mean().backward()
    for rank in range(2):
        loss, gradient = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert loss.item() == pytest.approx(losses[rank % len(losses)].item(), rel=1e-6)
        np.testing.assert_allclose(gradient, head.weight.grad, atol=1e-6)
