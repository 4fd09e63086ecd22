"""`nnssl_pretrain`: train an encoder on stored volumes without labels."""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from nnssl.commands import command_line
from nnssl.commands.pretrain_list import print_tables
from nnssl.config import knows, override
from nnssl.data.volumes import PreparedSamples, StoredVolumes, batches, default_workers
from nnssl.encoders import encoder_spec
from nnssl.encoders.base import check_crop
from nnssl.paths import dataset_name
from nnssl.pretext import build_task, task_named
from nnssl.recipe import PretrainRecipe
from nnssl.trainers.pretrain_log import CURVES, LOG, TENSORBOARD, RunLog
from nnssl.trainers.pretrain_plan import folders_of, read_plan
from nnssl.trainers.pretrain_run import CONFIG_FILE, ENCODER_FILE, EncoderWriter, RunSettings, record_run, run_folder
from nnssl.trainers.pretraining import CHECKPOINT, Run, autocast_dtype, pretrain

DEFAULT_ENCODER, DEFAULT_TASK = "vit_small_16", "threedino"
EXAMPLES = """  nnssl_pretrain 4                                     3DINO with the default encoder and plans
  nnssl_pretrain 4 202 -t threedino -e vit_tiny_8 -f 0 -run mine
  nnssl_pretrain 201 -t smit -e smit_96                SMIT on a Swin
  nnssl_pretrain 4 -e vit_tiny_8 -run mine --c         continue a run that was interrupted
  nnssl_pretrain 4 -e vit_tiny_8 --set steps=2000 batch_size=16 prototypes=4096
  nnssl_pretrain --list                                tasks, their sources and defaults, encoders
  nnssl_pretrain --list -t smit                        the same for one task
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Console script."""
    parser = command_line.parser("nnssl_pretrain", __doc__ or "", EXAMPLES)
    parser.add_argument("datasets", nargs="*", metavar="DATASET", help="[REQUIRED] number or name; several are mixed")
    parser.add_argument("-t", metavar="TASK", help=f"[OPTIONAL] pretext task; default {DEFAULT_TASK}")
    parser.add_argument("-e", metavar="ENCODER", help=f"[OPTIONAL] default: the plan's, else {DEFAULT_ENCODER}")
    parser.add_argument("-p", metavar="PLANS", help="[OPTIONAL] plans name; default nnsslPlans_ENCODER")
    parser.add_argument(
        "-f",
        type=int,
        metavar="FOLD",
        help="[RECOMMENDED] leave out the validation cases of this fold; default: use all",
    )
    parser.add_argument(
        "-run", metavar="NAME", help="[OPTIONAL] folder below pretrained/; default TASK_ENCODER_DATASETS"
    )
    parser.add_argument("--c", action="store_true", help="[OPTIONAL] continue the run from its last checkpoint")
    parser.add_argument(
        "-min_side", type=int, default=0, metavar="N",
        help="[OPTIONAL] leave out images with a side below N voxels; default 0; the paper: 25",
    )  # fmt: skip
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
        help="[OPTIONAL] change the recipe (the plan's, with what the task's paper changes) or the task's settings",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="[OPTIONAL] list tasks and encoders with their defaults")
    command_line.add_device(parser)
    return command_line.run(_work, parser, argv)


def _work(arguments: argparse.Namespace) -> int:
    if arguments.list:
        if arguments.t:
            task_named(arguments.t)
        print_tables(arguments.t)
        return 0
    settings, task_assignments = _settings(arguments)
    device = command_line.device(arguments)
    folder = run_folder(arguments.run or settings.default_name(), arguments.c)
    volumes = StoredVolumes(folders_of(settings.plan, settings.fold), settings.min_side)
    recipe = settings.recipe
    torch.manual_seed(recipe.seed)
    task = build_task(settings.task, settings.encoder, recipe, task_assignments)
    record = record_run(folder, settings.as_json(task), cases=volumes.cases, resume=arguments.c)
    _print_header(settings, volumes, folder, device)
    log = RunLog(folder, recipe, EncoderWriter(folder, task, settings, record=record))
    samples, pinned = PreparedSamples(volumes, task.prepare, recipe.seed), device.type == "cuda"
    run = Run(folder, device, autocast_dtype(device), resume=arguments.c, watcher=log)
    try:
        pretrain(
            task,
            lambda first: batches(
                samples, recipe.batch_size, first_step=first, workers=default_workers(), pin_memory=pinned
            ),
            recipe=recipe,
            run=run,
        )
    finally:
        log.close()
    _print_files(folder)
    return 0


def _settings(arguments: argparse.Namespace) -> tuple[RunSettings, list[str]]:
    """What to train, checked; and the assignments that belong to the task."""
    if not arguments.datasets:
        raise ValueError("no data set given; give numbers or names, for example: nnssl_pretrain 4 (--help shows more)")
    name = arguments.t or DEFAULT_TASK
    task = task_named(name)
    if arguments.e is not None:
        encoder_spec(arguments.e)
    datasets = list(dict.fromkeys(dataset_name(name) for name in arguments.datasets))
    plan = read_plan(datasets, arguments.p or f"nnsslPlans_{arguments.e or DEFAULT_ENCODER}")
    if arguments.e not in (None, plan.encoder):
        raise ValueError(
            f"-e {arguments.e}: plans {plan.name!r} are for {plan.encoder}; "
            f"give -e {plan.encoder}, or plan with nnssl_plan_and_preprocess -e {arguments.e}"
        )
    for_recipe = [assignment for assignment in arguments.set if knows(PretrainRecipe, assignment)]
    for_task = [assignment for assignment in arguments.set if assignment not in for_recipe]
    _check_known(for_task, task.Config)
    recipe = override(dataclasses.replace(plan.recipe, **task.RECIPE), for_recipe)
    if knows(task.Config, "depth_axis"):  # the axis that a task crops apart is the coarse one, unless the user says so
        for_task = [f"depth_axis={plan.coarse_axis}", *for_task]
    settings = RunSettings(name, plan, recipe, arguments.f, arguments.min_side)
    check_crop(settings.encoder, recipe.global_crop)
    return settings, for_task


def _check_known(assignments: Sequence[str], config: type) -> None:
    for assignment in assignments:
        if "=" not in assignment or not knows(config, assignment):
            known = ", ".join([*_names(PretrainRecipe), *_names(config)])
            raise ValueError(f"--set {assignment}: expected key=value with a known key; known: {known}")


def _names(config: type) -> list[str]:
    return [field.name for field in dataclasses.fields(config)]


def _print_header(settings: RunSettings, volumes: StoredVolumes, folder: Path, device: torch.device) -> None:
    plan, recipe = settings.plan, settings.recipe
    tokens = [math.prod(settings.encoder.token_grid(crop)) for crop in (recipe.global_crop, recipe.local_crop)]
    passes = recipe.steps * recipe.batch_size / len(volumes)
    left_out = f", {volumes.left_out} image(s) below {settings.min_side} voxels left out" if volumes.left_out else ""
    fold = "" if settings.fold is None else f", without the validation cases of fold {settings.fold}"
    print(f"pretraining {plan.encoder} with {settings.task} on {', '.join(plan.datasets)} ({plan.name})")
    print(f"  data      {len(volumes.cases)} cases, {len(volumes)} images{fold}{left_out}")
    print(f"  spacing   {_times(plan.spacing_mm)} mm, intensity {plan.intensity}")
    local = f", local {_times(recipe.local_crop)} ({tokens[1]} tokens)" if settings.task == "threedino" else ""
    print(f"  crops     global {_times(recipe.global_crop)} ({tokens[0]} tokens){local}")
    print(f"  training  {recipe.steps} steps of batch {recipe.batch_size} = {passes:.1f} passes over the images")
    precision = {torch.bfloat16: "bfloat16", None: "float32"}[autocast_dtype(device)]
    print(f"  compute   {device}, {precision}, {default_workers()} data workers")
    print(f"  output    {folder}", flush=True)


def _print_files(folder: Path) -> None:
    print(f"done; files in {folder}:")
    for name, what in (
        (ENCODER_FILE, "the encoder, for nnssl_train -pretrained_weights"),
        (CHECKPOINT, "the whole state, for --c"),
        (CONFIG_FILE, "settings and salted hashes of the cases"),
        (LOG, "losses and rates per step"),
        (CURVES, "the same as a picture"),
        (TENSORBOARD, "the same for TensorBoard"),
    ):
        print(f"  {name:<21} {what}")


def _times(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)
