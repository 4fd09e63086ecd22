"""What is drawn for a joint batch: counts, and that the processes together draw what one would."""

import pytest
import torch
from torch import Tensor

from nnssl.layers.attention import add_branch
from nnssl.layers.joint_batch import joint_batch, kept_rows, random_rows
from nnssl.layers.window import Windows
from nnssl.layers.window_attention import SwinBlock

SAMPLES, VIEWS, PROCESSES = 3, 2, 2
JOINT = VIEWS * PROCESSES * SAMPLES


def _by_hand(rank: int) -> list[int]:
    """Rows of a process in the joint view-major stack, counted one by one."""
    samples = range(rank * SAMPLES, (rank + 1) * SAMPLES)
    return [view * PROCESSES * SAMPLES + sample for view in range(VIEWS) for sample in samples]


@pytest.mark.parametrize("seed", range(4))
def test_two_processes_draw_their_rows_of_what_one_draws(seed: int) -> None:
    torch.manual_seed(seed)
    kept, (chosen, scale) = kept_rows(JOINT, 0.6), random_rows(JOINT, 0.7)
    assert len(chosen) == 8 and scale == 12 / 8
    for rank in range(PROCESSES):
        torch.manual_seed(seed)
        with joint_batch(SAMPLES, rank=rank, processes=PROCESSES):
            own_kept, (own_chosen, own_scale) = kept_rows(JOINT // 2, 0.6), random_rows(JOINT // 2, 0.7)
        assert own_kept.equal(kept[_by_hand(rank)])
        assert [_by_hand(rank)[row] for row in own_chosen] == [row for row in chosen.tolist() if row in _by_hand(rank)]
        assert own_scale == scale


def test_stacks_of_different_numbers_of_views_stay_in_step() -> None:
    """Global and local views: the second draw follows the first in every process."""
    draws = []
    for rank, processes in ((0, 1), (0, 2), (1, 2)):
        torch.manual_seed(0)
        with joint_batch(SAMPLES * 2 // processes, rank=rank, processes=processes):
            draws.append([kept_rows(views * SAMPLES * 2 // processes, 0.5) for views in (2, 5)])
    for alone, first, second in zip(*draws, strict=True):
        parts = [part.view(-1, SAMPLES) for part in (first, second)]
        assert alone.equal(torch.cat(parts, dim=1).flatten())


def _marked(rows: int) -> Tensor:
    return torch.arange(1.0, rows + 1).view(rows, 1, 1).requires_grad_()


def test_a_process_whose_samples_all_lose_the_branch_still_gives_its_parameters_a_gradient() -> None:
    weight = torch.ones((), requires_grad=True)
    seen: list[int] = []

    def branch(tokens: Tensor) -> Tensor:
        seen.append(len(tokens))
        return tokens * weight

    changed = []
    for rank in range(2):
        torch.manual_seed(0)
        tokens = _marked(4)
        with joint_batch(4, rank=rank, processes=2):
            added = add_branch(tokens, branch, drop_rate=0.9)  # one of eight
        changed.append((added - tokens).detach().flatten())
        weight.grad = None
        added.sum().backward()
        assert weight.grad is not None and weight.grad.item() == pytest.approx(changed[-1].sum().item())
    assert sorted(int((change != 0).sum()) for change in changed) == [0, 1] and seen == [1, 1]
    assert torch.cat(changed).max().item() in [8.0 * row for row in range(1, 5)]


def test_a_swin_block_drops_the_joint_rows() -> None:
    block = SwinBlock(4, 1, windows=Windows(2), drop_path=0.5).train()
    torch.manual_seed(1)
    alone = block._kept(torch.ones(JOINT, 1, 4))
    for rank in range(PROCESSES):
        torch.manual_seed(1)
        with joint_batch(SAMPLES, rank=rank, processes=PROCESSES):
            assert block._kept(torch.ones(JOINT // 2, 1, 4)).equal(alone[_by_hand(rank)])
    assert set(alone.unique().tolist()) == {0.0, 2.0}


def test_the_share_ends_with_its_block_even_after_an_error() -> None:
    with pytest.raises(KeyError), joint_batch(1, rank=1, processes=2):
        raise KeyError
    assert len(kept_rows(5, 1.0)) == 5 and bool(kept_rows(5, 1.0).all())
