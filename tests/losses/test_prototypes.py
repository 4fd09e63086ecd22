"""The loss over prototypes and its gradients against plain float64 PyTorch, cut into any blocks and pieces."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nnssl.losses import prototypes
from nnssl.losses.prototypes import Aims, pieces, prototype_loss

K, D, T, TEMPERATURE = 40, 5, 3, 0.1
ROW_BYTES = 8 * K


def _drawn(rows: int, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Aims]:
    """Rows, gain and direction that learn, and aims whose targets do not sum to 1."""
    generator = torch.Generator().manual_seed(rows)
    shapes = [(rows, D), (K, 1), (K, D), (T, K), (rows,)]
    unit, gain, direction, targets, weights = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    )
    leaves = [part.requires_grad_() for part in (F.normalize(unit, dim=-1), gain + 2, direction)]
    return leaves, Aims(targets.abs(), torch.randint(T, (rows,), generator=generator), weights.abs())


def _plainly(leaves: list[Tensor], aims: Aims) -> Tensor:
    rows, gain, direction = (leaf.double() for leaf in leaves)
    logits = rows @ (gain * direction / direction.norm(dim=1, keepdim=True)).T
    entropies = -(aims.targets.double()[aims.chosen] * (logits / TEMPERATURE).log_softmax(1)).sum(1)
    return (entropies * aims.weights.double()).sum()


def _loss(leaves: list[Tensor], aims: Aims) -> Tensor:
    return prototype_loss(leaves[0], (leaves[1], leaves[2]), aims=aims, temperature=TEMPERATURE)


@pytest.mark.parametrize("rows", [0, 1, 7, 33])
@pytest.mark.parametrize(("block", "piece"), [(1, 1), (5, 2), (8, 100), (1000, 3)])
def test_loss_and_gradients_equal_plain_pytorch(
    rows: int, block: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prototypes, "BLOCK_BYTES", block * ROW_BYTES)
    monkeypatch.setattr(prototypes, "PIECE_BYTES", piece * ROW_BYTES)
    leaves, aims = _drawn(rows)
    found, expected = _loss(leaves, aims), _plainly(leaves, aims)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    own, plain = (torch.autograd.grad(3 * loss, leaves) for loss in (found, expected))
    torch.testing.assert_close(own, plain, rtol=1e-10, atol=1e-10)


def test_a_second_backward_pass_is_refused() -> None:
    leaves, aims = _drawn(4)
    loss = _loss(leaves, aims)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call it again"):
        loss.backward()


def test_float32_comes_close_to_float64() -> None:
    leaves, aims = _drawn(200, torch.float32)
    found, expected = _loss(leaves, aims), _plainly(leaves, aims)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    own, plain = (torch.autograd.grad(loss, leaves) for loss in (found, expected))
    torch.testing.assert_close(own, plain, rtol=1e-4, atol=1e-4)


def test_autocast_changes_nothing() -> None:
    leaves, aims = _drawn(9, torch.float32)
    plain = _loss(leaves, aims)
    with torch.autocast("cpu", torch.bfloat16):
        assert _loss(leaves, aims).equal(plain)


def test_logits_far_apart_do_not_overflow() -> None:
    leaves, aims = _drawn(6, torch.float32)
    with torch.no_grad():
        leaves[1] *= 1000
    found = _loss(leaves, aims)
    torch.testing.assert_close(found.double(), _plainly(leaves, aims), rtol=1e-5, atol=0)
    assert all(bool(part.isfinite().all()) for part in torch.autograd.grad(found, leaves))


def test_a_gain_of_zero_has_a_gradient() -> None:
    leaves, aims = _drawn(6)
    with torch.no_grad():
        leaves[1][3] = 0
    own, plain = (torch.autograd.grad(loss(leaves, aims), leaves) for loss in (_loss, _plainly))
    torch.testing.assert_close(own, plain)


def test_what_is_fixed_gets_no_gradient() -> None:
    leaves, aims = _drawn(6)
    leaves[1].requires_grad_(False)
    _loss(leaves, aims).backward()
    assert leaves[1].grad is None and leaves[0].grad is not None and leaves[2].grad is not None


def test_evaluation_makes_no_gradients() -> None:
    leaves, aims = _drawn(6)
    with torch.no_grad():
        assert not _loss(leaves, aims).requires_grad


def test_the_given_tensors_stay_as_they_are() -> None:
    leaves, aims = _drawn(6)
    before = [part.clone() for part in (*leaves, *aims)]
    _loss(leaves, aims).backward()
    assert all(old.equal(new) for old, new in zip(before, (*leaves, *aims), strict=True))


def test_pieces_are_all_rows_in_order() -> None:
    matrix = torch.arange(2.0**19).view(8, 2**16)
    assert torch.cat(pieces(matrix)).equal(matrix) and len(pieces(matrix)) == 8
    assert pieces(matrix[:0]) == ()
