"""A run with `recompute` takes the same steps as one without."""

from dataclasses import replace

import pytest
import torch

from nnssl.trainers.learning import Learner
from nnssl.trainers.optimiser import rates_at
from tests.pretext.toys import RECIPE, prepared, toy_task


def _values(name: str, recompute: bool) -> list[dict[str, float]]:
    recipe = replace(RECIPE, recompute=recompute, warmup_fraction=0.0, freeze_last_layer=0.0)
    task = toy_task(name, ["drop_path=0.5"], recipe=recipe).train()
    learner = Learner(task, recipe, autocast=torch.bfloat16)
    return [learner.learn(step, prepared(task, seed=step), rates_at(step, recipe)) for step in range(3)]


@pytest.mark.parametrize("name", ["threedino", "simmim"])
def test_steps_are_equal_bit_for_bit(name: str) -> None:
    plain, again = (_values(name, recompute) for recompute in (False, True))
    assert plain == again
    assert plain[0]["loss"] != plain[2]["loss"]
