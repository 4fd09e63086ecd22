"""Our side of pretrain_step.py: `nnssl_pretrain`'s own stream of batches and its training step, timed by part."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnssl.data.seeds import generator_at
from nnssl.data.volumes import PreparedSamples, StoredFolder, StoredVolumes, batches, stored_cases
from nnssl.encoders import encoder_spec
from nnssl.pretext import build_task
from nnssl.pretext.threedino import ThreeDino
from nnssl.recipe import PretrainRecipe
from nnssl.trainers.learning import Learner
from nnssl.trainers.optimiser import rates_at

RECIPE = PretrainRecipe((96, 96, 96), (48, 48, 48), steps=100, batch_size=2)
SETTINGS = ["drop_path=0"]
PARTS = ("data", "teacher", "student", "heads", "losses", "backward", "optimiser", "EMA", "rest")


class Clock:
    """CPU seconds by part: `enter(part)` ends the one before. Other work on the machine does not count."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._part, self._since = "rest", time.process_time()

    def enter(self, part: str) -> None:
        """From now on time is this part's."""
        now = time.process_time()
        self.seconds[self._part] += now - self._since
        self._part, self._since = part, now

    def taken(self) -> dict[str, float]:
        """Seconds since the last call."""
        self.enter("rest")
        found, self.seconds = self.seconds, dict.fromkeys(PARTS, 0.0)
        return found


def threedino(*settings: str) -> ThreeDino:
    """The task, its weights fixed by a seed."""
    torch.manual_seed(0)
    task = build_task("threedino", encoder_spec("vit_small_16", RECIPE.global_crop), RECIPE, [*SETTINGS, *settings])
    assert isinstance(task, ThreeDino)
    return task


def collated(work: Path, task: ThreeDino, first_step: int = 0) -> Iterator[dict[str, Tensor]]:
    """Batches as `nnssl_pretrain` prepares them, in this process."""
    volumes = StoredVolumes([StoredFolder("brains", work, stored_cases(work))])
    return batches(PreparedSamples(volumes, task.prepare, seed=0), RECIPE.batch_size, first_step=first_step)


def same_batch(work: Path, number: int) -> dict[str, Tensor]:
    """The augmented batch of a step, made the same way for both sides."""
    task = threedino("prototypes=64", "hidden=32", "bottleneck=16")
    return task.augment(next(collated(work, task, number)), generator_at(0, 2, number))


class Side:
    """`nnssl_pretrain`'s stream and step."""

    def __init__(self, work: Path) -> None:
        self.clock, self.task = Clock(), threedino()
        self.learner = Learner(self.task.train(), RECIPE, autocast=torch.bfloat16)
        self.stream = collated(work, self.task)
        watch(self.learner, self.clock)

    def step(self, number: int) -> float:
        """Data, then the step."""
        self.clock.enter("data")
        return self.learner.learn(number, next(self.stream), rates_at(number, RECIPE))["loss"]

    def fed(self, number: int, batch: dict[str, Tensor]) -> float:
        """The step with an augmented batch."""
        self.task.augment = lambda *_: batch  # type: ignore[method-assign]
        return self.step(number)


def watch(learner: Learner, clock: Clock) -> None:
    """Tell the clock which part of our step begins."""
    task = learner.task
    assert isinstance(task, ThreeDino)
    timed(task, "augment", clock, "data", "rest")
    timed(task, "forward", clock, "losses", "backward")
    for parts, who in ((task.teacher.parts, "teacher"), (task.student, "student")):
        for name, module in parts.items():
            watched, part = (module, who) if name == "encoder" else (module.mlp, "heads")
            timed(watched, "forward", clock, part, "losses")
    timed(learner, "_backward", clock, "rest", "optimiser")
    timed(task, "after_step", clock, "EMA", "rest")


def timed(owner: object, method: str, clock: Clock, part: str, after: str) -> None:
    """From now on a call of the method is time of `part`, and what follows it of `after`."""
    called = getattr(owner, method)

    def call(*given: Any, **named: Any) -> Any:
        clock.enter(part)
        result = called(*given, **named)
        clock.enter(after)
        return result

    setattr(owner, method, call)
