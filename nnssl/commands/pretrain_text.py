"""What `nnssl_pretrain` says before and after a run."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from nnssl.data.volumes import StoredVolumes, default_workers
from nnssl.losses.processes import world
from nnssl.trainers.following import PICTURES, Watching
from nnssl.trainers.loggers import TENSORBOARD
from nnssl.trainers.pretrain_log import CURVES, LOG
from nnssl.trainers.pretrain_run import CONFIG_FILE, ENCODER_FILE, RunSettings
from nnssl.trainers.pretraining import CHECKPOINT, autocast_dtype


def print_header(
    settings: RunSettings, volumes: StoredVolumes, folder: Path, *, device: torch.device, watching: Watching
) -> None:
    """What will be trained on what, and where it is written."""
    plan, recipe = settings.plan, settings.recipe
    tokens = [math.prod(settings.encoder.token_grid(crop)) for crop in (recipe.global_crop, recipe.local_crop)]
    passes = recipe.steps * recipe.batch_size / len(volumes)
    left_out = f", {volumes.left_out} image(s) below {settings.min_side} voxels left out" if volumes.left_out else ""
    fold = "" if settings.fold is None else f", without the validation cases of fold {settings.fold}"
    print(f"pretraining {plan.encoder} with {settings.task} on {', '.join(plan.datasets)} ({plan.name})")
    print(f"  data      {len(volumes.cases)} cases, {len(volumes)} images{fold}{left_out}")
    if plan.weights:
        total = sum(plan.weights.values())
        print(f"  mixed     {', '.join(f'{100 * plan.weights[name] / total:.3g} % {name}' for name in plan.weights)}")
    print(f"  spacing   {_times(plan.spacing_mm)} mm, intensity {plan.intensity}")
    local = f", local {_times(recipe.local_crop)} ({tokens[1]} tokens)" if settings.task == "threedino" else ""
    print(f"  crops     global {_times(recipe.global_crop)} ({tokens[0]} tokens){local}")
    print(f"  training  {recipe.steps} steps of batch {recipe.batch_size} = {passes:.1f} passes over the images")
    precision = {torch.bfloat16: "bfloat16", None: "float32"}[autocast_dtype(device)]
    print(f"  compute   {world()} process(es) on {device.type}, {precision}, {default_workers()} data workers")
    print(f"  watched   {', '.join(watching.loggers)}{_looks(watching)}")
    print(f"  output    {folder}", flush=True)


def print_files(folder: Path, steps_done: int, steps: int) -> None:
    """The files of a run that ended, as far as they are there."""
    stopped = f"stopped as asked after {steps_done} of {steps} steps, --c continues"
    print(f"{'done' if steps_done == steps else stopped}; files in {folder}:")
    for name, what in (
        (ENCODER_FILE, "the encoder, for nnssl_train -pretrained_weights"),
        (CHECKPOINT, "the whole state, for --c"),
        (CONFIG_FILE, "settings and salted hashes of the cases"),
        (LOG, "losses and rates per step"),
        (CURVES, "the same as a picture"),
        (TENSORBOARD, "the same for TensorBoard"),
        (PICTURES, "slices with the features of the encoder as colours"),
    ):
        if (folder / name).exists():
            print(f"  {name:<21} {what}")


def _looks(watching: Watching) -> str:
    if not watching.every:
        return ""
    probe = f" and a probe on {watching.probe_dataset}" if watching.probe_dataset else ""
    return f"; every {watching.every} steps pictures of features{probe}"


def _times(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)
