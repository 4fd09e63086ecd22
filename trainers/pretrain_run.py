"""The folder of a pretraining run: its settings, its encoder file, and the rules for continuing it."""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nnssl import __version__
from nnssl.config import from_dict, to_dict
from nnssl.encoders import encoder_spec
from nnssl.encoders.base import Encoder, EncoderSpec
from nnssl.paths import dataset_id, load_json, pretrained_folder, save_json
from nnssl.pretext.base import PretextTask
from nnssl.recipe import PretrainRecipe
from nnssl.trainers.checkpoints import has_checkpoint
from nnssl.trainers.pretrain_plan import PretrainPlan
from nnssl.trainers.pretraining import CHECKPOINT, check_same_settings
from nnssl.weights.encoder_file import save_encoder
from nnssl.weights.header import DataRecord, EncoderHeader, record_cases, seen_cases

ENCODER_FILE, CONFIG_FILE = "encoder.safetensors", "config.json"


@dataclass(frozen=True)
class RunSettings:
    """What a run is: a continued run must have the same."""

    task: str
    plan: PretrainPlan
    recipe: PretrainRecipe  # of the plan, with the task's changes and --set applied
    fold: int | None = None  # whose validation cases were left out
    min_side: int = 0  # voxels
    stage: str | None = None  # name in STAGES
    start: str | None = None  # the earlier run from whose weights this one starts

    @property
    def encoder(self) -> EncoderSpec:
        """The encoder to train; its native crop is the crop of the views."""
        plan = self.plan
        return encoder_spec(
            plan.encoder, self.recipe.global_crop, intensity=plan.intensity, options=plan.encoder_options
        )

    def default_name(self) -> str:
        """`threedino_vit_small_16_004_202`, with the fold where one was left out."""
        datasets = "_".join(f"{dataset_id(dataset):03d}" for dataset in self.plan.datasets)
        return (
            f"{self.task}_{self.plan.encoder}_{datasets}"
            + ("" if self.fold is None else f"_fold{self.fold}")
            + (f"_{self.stage}" if self.stage else "")
        )

    def as_json(self, task: PretextTask) -> dict[str, Any]:
        """Plain values without case names and paths, the task's own settings among them."""
        values = to_dict(self)
        del values["plan"]["recipe"]  # the run's own recipe stands beside it
        return values | {"task_settings": to_dict(task.config), "package_version": __version__}


def run_folder(name: str, resume: bool) -> Path:
    """`$nnUNet_results/pretrained/NAME`, checked: a new run has no files there, a continued one has.

    A run that was cut before its first checkpoint is continued from the start.

    Raises:
        ValueError: bad name, or the run exists.
        FileNotFoundError: nothing to continue.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"-run {name!r}: use letters, digits, '.', '_' and '-'")
    folder = pretrained_folder() / name
    exists = has_checkpoint(folder) or (folder / ENCODER_FILE).is_file()
    if exists and not resume:
        raise ValueError(f"run {name!r} exists in {folder}; --c continues it, -run NAME starts another")
    if resume and not exists and not (folder / CONFIG_FILE).is_file():
        known = sorted(path.parent.name for path in pretrained_folder().glob(f"*/{CHECKPOINT}"))
        raise FileNotFoundError(
            f"--c: run {name!r} has no {CHECKPOINT} in {folder}; runs here: {', '.join(known) or 'none'}"
        )
    return folder


def is_begun(name: str) -> bool:
    """Whether a run of that name has been started, with or without a checkpoint."""
    return (pretrained_folder() / name / CONFIG_FILE).is_file()


def record_run(folder: Path, settings: dict[str, Any], *, cases: Sequence[tuple[str, str]], resume: bool) -> DataRecord:
    """Write config.json of a new run, or check a continued one against it; returns the record of the cases.

    Raises:
        ValueError: a continued run has other settings or other cases.
    """
    path = folder / CONFIG_FILE
    if not resume or not path.is_file():
        record = record_cases(cases)
        save_json(settings | {"data": to_dict(record)}, path)
        return record
    saved = load_json(path)
    record = from_dict(DataRecord, saved.pop("data"))
    check_same_settings(_flat(saved), _flat(settings))
    known = sum(
        len(seen_cases(record, dataset, [case for owner, case in cases if owner == dataset]))
        for dataset in {owner for owner, _ in cases}
    )
    if not known == len(cases) == record.cases:
        raise ValueError(
            f"continuing run {folder.name!r}: it was started on {record.cases} cases, of which {known} are among the "
            f"{len(cases)} given now; restore the preprocessed cases or start a new -run NAME"
        )
    return record


class EncoderWriter:
    """Writes the encoder of a task with a header that says how it was trained; made before parameters are shared."""

    def __init__(self, folder: Path, task: PretextTask, settings: RunSettings, *, record: DataRecord) -> None:
        self.path, self.settings, self.record = folder / ENCODER_FILE, settings, record
        self.encoder, self.task_config = copy.deepcopy(task.result()), to_dict(task.config)
        self.prefix = next(name for name, module in task.named_modules() if module is task.result()) + "."

    def __call__(self, steps_done: int, task_state: dict[str, Tensor]) -> Encoder:
        """Write encoder.safetensors as it was after `steps_done` steps; returns that encoder, a copy on the CPU."""
        encoder, plan = self.encoder, self.settings.plan
        own = {name: tensor for name, tensor in task_state.items() if name.startswith(self.prefix)}
        encoder.load_state_dict({name.removeprefix(self.prefix): tensor for name, tensor in own.items()})
        header = EncoderHeader(
            encoder=plan.encoder,
            native_crop=encoder.spec.native_crop,
            encoder_options=encoder.spec.options,
            intensity=plan.intensity,
            spacing_mm=plan.spacing_mm,
            orientation=plan.orientation,
            axes=plan.axes,
            task=self.settings.task,
            steps=steps_done,
            plan={
                "name": plan.name,
                "datasets": list(plan.datasets),
                "recipe": to_dict(self.settings.recipe),
                "task": self.task_config,
                "stage": self.settings.stage,
                "start": self.settings.start,
            },
            data=self.record,
        )
        save_encoder(self.path, encoder, header)
        return encoder


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Settings under the names by which the user sets them; the version may change."""
    nested = ("recipe", "task_settings")
    outer = {name: value for name, value in values.items() if name not in (*nested, "package_version")}
    return outer | {name: value for group in nested for name, value in values[group].items()}
