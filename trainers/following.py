"""Looks at the encoder of a running pretraining: a probe on a few labelled scans, and pictures of its features."""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnssl.data.volumes import StoredVolumes
from nnssl.encoders.base import Encoder, to_encoder_range
from nnssl.evaluation.frozen_scores import frozen_scores
from nnssl.evaluation.labelled import LabelledSet, read_labelled
from nnssl.geometry import triple
from nnssl.paths import load_json, preprocessed_folder
from nnssl.recipe import PretrainRecipe
from nnssl.trainers.loggers import one_line
from nnssl.trainers.pretrain_log import AtSave
from nnssl.trainers.pretrain_plan import PretrainPlan, folders_of, read_plan
from nnssl.trainers.pretrain_run import RunSettings
from nnssl.transforms.views import padded_crop
from nnssl.visualization.features import draw_features

PICTURES = "pictures"
LOOKS = 20  # per run, where the user names no number of steps
PICTURED = 3  # volumes
FINE_ENOUGH = 16  # voxels per cell: of a pyramid the coarsest map is pictured that is no coarser

Look = Callable[[Encoder, int], dict[str, float]]  # encoder and steps done -> numbers to log

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Watching:
    """How a run is watched; nothing of it changes what is learnt."""

    every: int = 0  # steps between looks at the encoder; 0: never
    probe_dataset: str | None = None  # folder name of the labelled data set
    loggers: tuple[str, ...] = ("tensorboard",)


class Follower:
    """Looks at the encoder at saves, every so many steps and at the end; what goes wrong ends in a warning.

    A look draws from no global generator, so that a run is the same with and without it.

    Args:
        every: steps between looks, a multiple of those between saves; 0: never.
        steps: of the run.
        device: where the encoder is looked at.
        looks: name -> look.
    """

    def __init__(self, every: int, steps: int, *, device: torch.device, looks: Mapping[str, Look]) -> None:
        self.every, self.steps, self.device, self.looks = every, steps, device, looks

    def __call__(self, steps_done: int, encoder: Encoder) -> dict[str, float]:
        """Numbers to log, none where it is not the time; `encoder` is a private copy on the CPU."""
        found: dict[str, float] = {}
        if not self.every or (steps_done % self.every and steps_done != self.steps):
            return found
        for name, look in self.looks.items():
            try:
                placed = encoder if self.device.type == "cpu" else copy.deepcopy(encoder).to(self.device)
                found |= look(placed.eval(), steps_done)
            except Exception as error:  # whatever it is, the run is worth more
                log.warning("%s after %d steps failed (%s); the run goes on", name, steps_done, one_line(error))
        return found


def saving(write: Callable[[int, dict[str, Tensor]], Encoder], follower: Follower) -> AtSave:
    """What happens at a save: `write` writes the encoder and returns it, then it is looked at."""
    return lambda steps_done, state: follower(steps_done, write(steps_done, state))


def looks_at(
    watching: Watching, settings: RunSettings, volumes: StoredVolumes, *, folder: Path, exclusions: Sequence[str]
) -> dict[str, Look]:
    """The looks that were asked for, with the scans that they need; errors as of `read_probe_set`."""
    if not watching.every:
        return {}
    plan, crop, looks = settings.plan, settings.recipe.global_crop, dict[str, Look]()
    if watching.probe_dataset:
        looks["the probe"] = probe_look(read_probe_set(watching.probe_dataset, plan, crop))
    shown = central_crops(shown_volumes(settings, volumes, exclusions), crop)
    return looks | {"the picture of features": picture_look(folder / PICTURES, shown, plan.spacing_mm)}


def checked_every(every: int | None, recipe: PretrainRecipe) -> int:
    """Steps between looks; where none are given, saves are chosen so that a run has about 20.

    Raises:
        ValueError: negative, or no multiple of `save_every`.
    """
    if every is None:
        return max(1, recipe.steps // (LOOKS * recipe.save_every)) * recipe.save_every
    if every < 0 or every % recipe.save_every:
        raise ValueError(
            f"-probe_every {every}: the encoder is looked at when it is saved, so give a multiple of "
            f"save_every={recipe.save_every} (0: never), or another --set save_every=..."
        )
    return every


def probe_look(labelled: LabelledSet) -> Look:
    """Scores of nearest neighbours and a linear probe on labelled scans."""
    return lambda encoder, steps_done: frozen_scores(encoder, labelled)


def picture_look(folder: Path, volumes: Sequence[Tensor], spacing_mm: Sequence[float]) -> Look:
    """Principal components of the features of volumes (1, X, Y, Z), as `folder/step00000500.png`."""

    def look(encoder: Encoder, steps_done: int) -> dict[str, float]:
        maps = [pictured_map(encoder, volume).cpu().numpy() for volume in volumes]
        path = folder / f"step{steps_done:08d}.png"
        title = f"features after {steps_done} steps: principal components 1, 2, 3 as red, green, blue"
        draw_features(path, [volume[0].numpy() for volume in volumes], maps, spacing_mm=spacing_mm, title=title)
        return {}

    return look


@torch.no_grad()
def pictured_map(encoder: Encoder, volume: Tensor) -> Tensor:
    """(C, X / s, Y / s, Z / s): the coarsest map with cells of at most 16 voxels a side, float32."""
    spec = encoder.spec
    scaled = to_encoder_range(volume, spec.intensity.encoder_range)[None]
    maps = encoder(scaled.to(next(encoder.parameters(), scaled).device)).maps
    return maps[max((level for level, stride in enumerate(spec.strides) if stride <= FINE_ENOUGH), default=0)][0]


def central_crops(volumes: StoredVolumes, crop: Sequence[int]) -> list[Tensor]:
    """The middle (1, *crop) of three images, spread evenly over the list; smaller ones are filled with background."""
    count = min(PICTURED, len(volumes))
    chosen: list[Any] = [volumes.volume(place * len(volumes) // count) for place in range(count)]
    crops = []
    for volume in chosen:
        corner = tuple(max(0, full - side) // 2 for full, side in zip(volume.shape[1:], crop, strict=True))
        crops.append(padded_crop(volume, corner, triple(crop)))
    return crops


def shown_volumes(settings: RunSettings, volumes: StoredVolumes, exclusions: Sequence[str]) -> StoredVolumes:
    """The validation images of the run's fold; those of the run where it has no fold, or the fold no such images."""
    if settings.fold is None:
        return volumes
    everything = folders_of(settings.plan, None, exclusions)
    used = {folder.dataset: set(folder.cases) for folder in folders_of(settings.plan, settings.fold, exclusions)}
    left = [one._replace(cases=[case for case in one.cases if case not in used[one.dataset]]) for one in everything]
    return StoredVolumes(left) if any(folder.cases for folder in left) else volumes


def read_probe_set(dataset: str, plan: PretrainPlan, crop: Sequence[int]) -> LabelledSet:
    """Labelled crops of a data set that was preprocessed under the run's plans name.

    Raises:
        FileNotFoundError: there are no such plans or no stored volumes; the message says which command makes them.
        ValueError: they are for another encoder or intensity, or there are too few labelled cases.
    """
    own = read_plan([dataset], plan.name)
    for word in ("encoder", "intensity", "axes", "orientation"):
        if getattr(own, word) != getattr(plan, word):
            raise ValueError(
                f"-probe_dataset {dataset}: plans {plan.name!r} say {word} {getattr(own, word)}, those of the run "
                f"{getattr(plan, word)}; plan it with the same options"
            )
    (stored,) = folders_of(own, None)
    return read_labelled(stored, load_json(preprocessed_folder() / dataset / "dataset.json"), crop)
