"""A trainer on the toy data set for tests of fine-tuning."""

import json
from pathlib import Path
from typing import Any

import torch

from nnssl.trainers.frozen_encoder import FrozenEncoderTrainer
from tests.toy_dataset import PLANS


def make_trainer(
    environment: Path,
    fold: int = 0,
    *,
    recipe: dict[str, Any] | None = None,
    batch_size: int = 2,
    **run: Any,
) -> FrozenEncoderTrainer:
    """A trainer of the preprocessed toy data set; `recipe` changes the plans' recipe, `run` their run section."""
    plans = json.loads((environment / f"{PLANS}.json").read_text())
    plans["nnssl"]["run"] = {"mode": "random_frozen", "num_labelled": None, "seed": 0, **run}
    plans["nnssl"]["finetune"].update(recipe or {})
    plans["configurations"]["3d_fullres"]["batch_size"] = batch_size
    plans["continue_training"] = False
    torch.manual_seed(0)
    dataset_json = json.loads((environment / "dataset.json").read_text())
    return FrozenEncoderTrainer(plans, "3d_fullres", fold, dataset_json, torch.device("cpu"))
