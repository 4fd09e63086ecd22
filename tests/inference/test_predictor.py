"""The predictor steps as the model's recipe says, unless it is told otherwise."""

import pytest
import torch

from nnssl.config import to_dict
from nnssl.inference.predictor import NnsslPredictor, planned_step_size
from nnssl.recipe import RECIPES


@pytest.mark.parametrize(("name", "step"), [("3dino", 0.25), ("smit_many", 0.5)])
def test_the_step_is_what_the_overlap_leaves(name: str, step: float) -> None:
    assert planned_step_size({"nnssl": {"finetune": to_dict(RECIPES[name].finetune)}}) == step


def test_models_without_an_overlap_step_by_half() -> None:
    assert planned_step_size({"nnssl": {"finetune": {"lr": 1e-4}}}) == 0.5


@pytest.mark.parametrize("step", [0.0, 1.5])
def test_a_step_outside_the_crop_is_refused(step: float) -> None:
    with pytest.raises(ValueError, match="must be above 0 and at most 1"):
        NnsslPredictor(torch.device("cpu"), step_size=step)
