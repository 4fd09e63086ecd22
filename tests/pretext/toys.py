"""Tiny tasks, encoders, volumes and batches for the tests of pretext tasks."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nnssl.config import knows
from nnssl.data.collation import collate
from nnssl.encoders import encoder_spec
from nnssl.encoders.base import EncoderSpec, IntensityRange
from nnssl.pretext import TASKS, build_task
from nnssl.pretext.base import PretextTask
from nnssl.recipe import PretrainRecipe
from tests.rules import uniform

IMAGES = 3
CROP = (32, 32, 32)
RECIPE = PretrainRecipe(global_crop=CROP, local_crop=(16, 16, 16), batch_size=IMAGES, steps=100)
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {  # family -> line of the table and what differs
    "vit": ("vit_tiny_16", {"depth": 2, "dim": 48, "heads": 3}),
    "swin": ("swin_tiny", {"width": 12, "depths": [1, 2, 1, 1], "heads": [1, 1, 2, 2]}),
}
SMALL = (
    "prototypes=64",
    "hidden=32",
    "bottleneck=16",
    "projection=16",
    "temperature=0.1",
    "local_views=2",
    "drop_path=0",
)  # fmt: skip - settings of any task, where it has them


def toy_spec(family: str = "vit", crop: tuple[int, int, int] = CROP, **options: Any) -> EncoderSpec:
    """A small encoder that sees [-1, 1]."""
    name, differing = ENCODERS[family]
    return encoder_spec(name, crop, intensity=IntensityRange(), options=differing | options)


def toy_task(
    name: str,
    extra: Sequence[str] = (),
    *,
    family: str = "vit",
    recipe: PretrainRecipe = RECIPE,
    seed: int = 0,
) -> PretextTask:
    """A freshly initialised small task."""
    torch.manual_seed(seed)
    spec = toy_spec(family, recipe.global_crop)
    if any(side % spec.crop_multiple for side in recipe.local_crop) and recipe.local_crop == RECIPE.local_crop:
        recipe = replace(recipe, local_crop=(spec.crop_multiple,) * 3)
    small = [setting for setting in SMALL if name in TASKS and knows(TASKS[name].Config, setting)]
    return build_task(name, spec, recipe, (*small, *extra))


def toy_volumes(count: int = IMAGES) -> list[Tensor]:
    """Volumes (1, 40, 36, 24) in [0, 1] that differ between samples and between places."""
    coarse = torch.from_numpy(uniform("toy volumes", (count, 1, 8, 7, 5), 0.0, 1.0))
    return list(torch.nn.functional.interpolate(coarse, size=(40, 36, 24), mode="trilinear"))


def prepared(task: PretextTask, seed: int = 0, images: int = IMAGES) -> dict[str, Tensor]:
    """What the data loader hands over: geometry done, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return collate([task.prepare(volume, generator) for volume in toy_volumes(images)])


def toy_batch(task: PretextTask, seed: int = 0, images: int = IMAGES) -> dict[str, Tensor]:
    """What `forward` receives."""
    return task.augment(prepared(task, seed, images), torch.Generator().manual_seed(seed))


def optimiser_of(task: PretextTask, lr: float = 1e-3) -> torch.optim.Optimizer:
    """AdamW over the trained parts."""
    parameters = [parameter for part in task.trained_parts().values() for parameter in part.parameters()]
    return torch.optim.AdamW(parameters, lr=lr)


def train(task: PretextTask, steps: int, *, total: int = 10) -> float:
    """Whole training steps in the order of the training loop; the last loss."""
    optimiser = optimiser_of(task)
    loss = torch.zeros(())
    for step in range(steps):
        task.begin_step(step, total)
        loss = task(toy_batch(task, seed=step))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        task.after_step(step, total)
    return loss.item()
