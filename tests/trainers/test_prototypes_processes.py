"""Prototypes that are spread over processes: their loss and gradients are made while a head is whole."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.trainers.pretrain_processes import Job, final, finish, records


@pytest.mark.slow
@pytest.mark.parametrize("task", ["threedino", "smit"])
def test_two_sharded_processes_learn_what_one_does(tmp_path: Path, task: str) -> None:
    alone = Job(tmp_path / "one", task=task, settings=("drop_path=0",), steps=4)
    pair = replace(alone, folder=tmp_path / "two", processes=2, parallel="fsdp")
    one, two = ([record["loss"] for record in records(finish(job))] for job in (alone, pair))
    assert two == pytest.approx(one, rel=1e-5) and len(one) == 4
    found, expected = final(pair.folder), final(alone.folder)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)
