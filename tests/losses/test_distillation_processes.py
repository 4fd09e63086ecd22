"""Targets made by two processes together equal those of one process that sees all rows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from nnssl.losses.distillation import mean_logits, sinkhorn_knopp
from tests.rules import normal

SPLIT = 3  # rows of the first process; the second has the rest


def _targets_of_one_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    rows = torch.from_numpy(normal("logits", (8, 10), 0.3)).tensor_split([SPLIT])[rank]
    mean = mean_logits(rows.sum(0, keepdim=True), len(rows))
    torch.save((sinkhorn_knopp(rows, 0.05), mean), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_one_sinkhorn_problem(tmp_path: Path) -> None:
    multiprocessing.spawn(_targets_of_one_process, args=(str(tmp_path),), nprocs=2)
    logits = torch.from_numpy(normal("logits", (8, 10), 0.3))
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    np.testing.assert_allclose(torch.cat([part[0] for part in parts]), sinkhorn_knopp(logits.clone(), 0.05), atol=1e-6)
    for _, mean in parts:
        np.testing.assert_allclose(mean, logits.mean(0, keepdim=True), atol=1e-6)
