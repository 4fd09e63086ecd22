"""The table of pretext tasks, and a task by name."""

from collections.abc import Sequence

from nnssl.config import override
from nnssl.encoders.base import EncoderSpec
from nnssl.pretext.base import PretextTask
from nnssl.pretext.contrastive import Contrastive
from nnssl.pretext.dino import Dino
from nnssl.pretext.ibot import Ibot
from nnssl.pretext.inpainting import Inpainting
from nnssl.pretext.reconstruction import Reconstruction
from nnssl.pretext.rotation import Rotation
from nnssl.pretext.simmim import SimMIM
from nnssl.pretext.smit import Smit
from nnssl.pretext.swin_unetr import SwinUNETR
from nnssl.pretext.threedino import ThreeDino
from nnssl.recipe import PretrainRecipe

TASKS: dict[str, type[PretextTask]] = {
    "threedino": ThreeDino,
    "smit": Smit,
    "ibot": Ibot,
    "dino": Dino,
    "simmim": SimMIM,
    "contrastive": Contrastive,
    "rotation": Rotation,
    "inpainting": Inpainting,
    "reconstruction": Reconstruction,
    "swin_unetr": SwinUNETR,
}


def build_task(name: str, spec: EncoderSpec, recipe: PretrainRecipe, assignments: Sequence[str] = ()) -> PretextTask:
    """A freshly initialised task.

    Args:
        name: a key of `TASKS`; an unknown one is an error that lists them.
        spec: the encoder, as `encoder_spec(name, recipe.global_crop, intensity=..., options=...)` describes it.
        recipe: crop sizes and the rest of the optimisation.
        assignments: `key=value` changes of the task's own settings (`TASKS[name].Config`).
    """
    task = task_named(name)
    return task(spec, recipe, override(task.Config(), assignments))


def task_named(name: str) -> type[PretextTask]:
    """A line of the table; an unknown name is an error that lists the known ones."""
    if name not in TASKS:
        raise ValueError(f"pretext task {name!r} is unknown; known tasks: {', '.join(TASKS)}")
    return TASKS[name]
