"""Tiny tasks, volumes and batches for the tests of pretext tasks."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import default_collate

from nnssl.encoders.base import IntensityRange
from nnssl.pretext import build_task
from nnssl.pretext.base import PretextTask
from nnssl.recipe import PretrainRecipe
from tests.rules import uniform

ENCODER = "vit_tiny_16"
IMAGES = 3
RECIPE = PretrainRecipe(global_crop=(32, 32, 32), local_crop=(16, 16, 16), batch_size=IMAGES, steps=100)
SETTINGS = {"threedino": ("prototypes=64", "hidden=32", "bottleneck=16", "local_views=2", "drop_path=0")}


def toy_task(name: str, extra: Sequence[str] = (), *, recipe: PretrainRecipe = RECIPE, seed: int = 0) -> PretextTask:
    """A freshly initialised small task."""
    torch.manual_seed(seed)
    return build_task(name, ENCODER, recipe, IntensityRange(), (*SETTINGS.get(name, ()), *extra))


def toy_volumes(count: int = IMAGES) -> list[Tensor]:
    """Volumes (1, 40, 36, 24) in [0, 1] that differ between samples and between places."""
    coarse = torch.from_numpy(uniform("toy volumes", (count, 1, 8, 7, 5), 0.0, 1.0))
    return list(torch.nn.functional.interpolate(coarse, size=(40, 36, 24), mode="trilinear"))


def prepared(task: PretextTask, seed: int = 0) -> dict[str, Tensor]:
    """What the data loader hands over: geometry done, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return default_collate([task.prepare(volume, generator) for volume in toy_volumes()])


def toy_batch(task: PretextTask, seed: int = 0) -> dict[str, Tensor]:
    """What `forward` receives."""
    return task.augment(prepared(task, seed), torch.Generator().manual_seed(seed))


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
