"""The table of pretext tasks, and a task by name."""

from collections.abc import Sequence

from nnssl.config import override
from nnssl.encoders.base import IntensityRange
from nnssl.pretext.base import PretextTask
from nnssl.pretext.threedino import ThreeDino
from nnssl.recipe import PretrainRecipe

TASKS: dict[str, type[PretextTask]] = {
    "threedino": ThreeDino,
}


def build_task(
    name: str,
    encoder: str,
    recipe: PretrainRecipe,
    intensity: IntensityRange,
    assignments: Sequence[str] = (),
) -> PretextTask:
    """A freshly initialised task.

    Args:
        name: a key of `TASKS`; an unknown one is an error that lists them.
        encoder: a key of `ENCODERS`; its native crop becomes `recipe.global_crop`.
        recipe: crop sizes and the rest of the optimisation.
        intensity: what the encoder sees.
        assignments: `key=value` changes of the task's own settings (`TASKS[name].Config`).
    """
    if name not in TASKS:
        raise ValueError(f"pretext task {name!r} is unknown; known tasks: {', '.join(TASKS)}")
    task = TASKS[name]
    return task(encoder, recipe, intensity, override(task.Config(), assignments))  # type: ignore[call-arg]
