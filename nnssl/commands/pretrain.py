"""`nnssl_pretrain`: train an encoder on stored volumes without labels."""

import argparse
import contextlib
import dataclasses
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from nnssl.commands import command_line
from nnssl.commands.pretrain_list import print_tables
from nnssl.config import knows, override
from nnssl.data.exclusion import read_exclusions
from nnssl.data.volumes import PreparedSamples, StoredVolumes, batches, default_workers
from nnssl.encoders import encoder_spec
from nnssl.encoders.base import check_crop
from nnssl.losses.processes import rank, world
from nnssl.paths import dataset_name
from nnssl.pretext import build_task, task_named
from nnssl.recipe import STAGES, PretrainRecipe
from nnssl.trainers.cluster import KNOWN, is_queued, read_wishes, submit
from nnssl.trainers.pretrain_log import CURVES, LOG, TENSORBOARD, RunLog
from nnssl.trainers.pretrain_plan import folders_of, read_plan, weighted
from nnssl.trainers.pretrain_run import (
    CONFIG_FILE,
    ENCODER_FILE,
    EncoderWriter,
    RunSettings,
    is_begun,
    record_run,
    run_folder,
)
from nnssl.trainers.pretraining import CHECKPOINT, Run, autocast_dtype, pretrain
from nnssl.trainers.processes import (
    PARALLEL,
    REQUEUE,
    check_divisible,
    joined,
    local_processes,
    told_by_first,
    was_restarted,
)
from nnssl.trainers.stage import all_cases, read_start, start_from

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
        "-min_side", type=int, metavar="N",
        help="[OPTIONAL] leave out images with a side below N voxels; default 0, or the stage's",
    )  # fmt: skip
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
        help="[OPTIONAL] change the recipe (the plan's, with what the task's paper changes) or the task's settings",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="[OPTIONAL] list tasks and encoders with their defaults")
    _add_mixture(parser)
    _add_stage(parser)
    _add_processes(parser)
    command_line.add_device(parser)
    words = sys.argv[1:] if argv is None else list(argv)
    return command_line.run(lambda arguments: _work(arguments, words), parser, words)


def _add_mixture(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-weights", nargs="+", default=[], metavar="DATASET=WEIGHT",
        help="[OPTIONAL] shares of the data sets in the samples, as in 4=1 202=3; default: every image counts alike",
    )  # fmt: skip
    parser.add_argument(
        "-exclude", nargs="+", type=Path, default=[], metavar="FILE",
        help="[OPTIONAL] text files of held-out cases, one CASE or DATASET/CASE per line (* stands for anything)",
    )  # fmt: skip


def _add_stage(parser: argparse.ArgumentParser) -> None:
    sources = "; ".join(f"{name}: {stage.source}" for name, stage in STAGES.items())
    parser.add_argument(
        "--stage", choices=tuple(STAGES),
        help=f"[OPTIONAL] crops, batch, steps, learning rate and -min_side of a paper's stage. {sources}",
    )  # fmt: skip
    parser.add_argument(
        "-pretrained_run", metavar="RUN",
        help="[REQUIRED for high_res] start from the teacher and heads of this run, or of RUN/checkpoint_step...",
    )  # fmt: skip


def _add_processes(parser: argparse.ArgumentParser) -> None:
    """Flags of runs on several processes; they do not change what is learnt."""
    parser.add_argument(
        "-parallel", choices=PARALLEL, default=PARALLEL[0],
        help="[OPTIONAL] under torchrun: ddp (default) keeps the model in every process, fsdp spreads it over them",
    )  # fmt: skip
    parser.add_argument(
        "-accumulate", type=int, default=1, metavar="N",
        help="[OPTIONAL] pass each process's share of a batch in N parts, which need less memory; default 1",
    )  # fmt: skip
    parser.add_argument(
        "--slurm", nargs="+", metavar="KEY=VALUE",
        help=f"[OPTIONAL] queue the run through submitit and requeue it until it is done; keys: {', '.join(KNOWN)}",
    )  # fmt: skip


def _work(arguments: argparse.Namespace, words: Sequence[str]) -> int:
    if arguments.list:
        if arguments.t:
            task_named(arguments.t)
        print_tables(arguments.t)
        return 0
    settings, task_assignments = _settings(arguments)
    name = arguments.run or settings.default_name()
    if arguments.slurm and not is_queued():
        return _queue(arguments, words, name)
    with joined(command_line.device(arguments)) as device:
        resume = arguments.c or bool(told_by_first("yes" if was_restarted() and is_begun(name) else ""))
        run = Run(
            run_folder(name, resume),
            device,
            autocast_dtype(device),
            resume,
            parallel=arguments.parallel,
            accumulate=arguments.accumulate,
        )
        return _train(settings, task_assignments, run, exclude=arguments.exclude)


def _queue(arguments: argparse.Namespace, words: Sequence[str], name: str) -> int:
    folder, wishes = run_folder(name, arguments.c), read_wishes(arguments.slurm)
    job = submit(main, words, wishes, name=name, folder=folder / "jobs")
    print(f"queued as job {job.job_id}; logs and requeues in {folder / 'jobs'}; the run in {folder}")
    return 0


def _train(settings: RunSettings, task_assignments: Sequence[str], run: Run, *, exclude: Sequence[Path]) -> int:
    recipe, device = settings.recipe, run.device
    check_divisible(recipe.batch_size, run.accumulate)
    volumes = StoredVolumes(folders_of(settings.plan, settings.fold, read_exclusions(exclude)), settings.min_side)
    torch.manual_seed(recipe.seed)
    task = build_task(settings.task, settings.encoder, recipe, task_assignments)
    start = read_start(settings.start) if settings.start else None
    if start is not None:
        start_from(task, start)
    samples = PreparedSamples(volumes, task.prepare, recipe.seed, settings.plan.weights)
    pinned = device.type == "cuda"
    workers = -(-default_workers() // local_processes())
    load = partial(batches, samples, recipe.batch_size, workers=workers, pin_memory=pinned, share=(rank(), world()))
    with contextlib.ExitStack() as closing:
        if rank() == 0:
            record = record_run(run.folder, settings.as_json(task), cases=volumes.cases, resume=run.resume)
            if start is not None:
                record = all_cases(start, record, volumes.cases)
            _print_header(settings, volumes, run.folder, device)
            log = RunLog(run.folder, recipe, EncoderWriter(run.folder, task, settings, record=record))
            closing.callback(log.close)
            run = dataclasses.replace(run, watcher=log)
        steps_done = pretrain(task, lambda first: load(first_step=first), recipe=recipe, run=run)
    if rank() == 0:
        _print_files(run.folder, steps_done, recipe.steps)
    return 0 if steps_done == recipe.steps else REQUEUE


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
    plan = weighted(plan, arguments.weights)
    for_recipe = [assignment for assignment in arguments.set if knows(PretrainRecipe, assignment)]
    for_task = [assignment for assignment in arguments.set if assignment not in for_recipe]
    _check_known(for_task, task.Config)
    stage = STAGES[arguments.stage] if arguments.stage else None
    if stage is not None and stage.continues and not arguments.pretrained_run:
        raise ValueError(f"--stage {arguments.stage}: it starts from an earlier run; give -pretrained_run RUN")
    changes = {**task.RECIPE, **(stage.recipe if stage else {})}
    recipe = override(dataclasses.replace(plan.recipe, **changes), for_recipe)
    if knows(task.Config, "depth_axis"):  # the axis that a task crops apart is the coarse one, unless the user says so
        for_task = [f"depth_axis={plan.coarse_axis}", *for_task]
    min_side = arguments.min_side if arguments.min_side is not None else stage.min_side if stage else 0
    settings = RunSettings(name, plan, recipe, arguments.f, min_side, arguments.stage, arguments.pretrained_run)
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
    if plan.weights:
        total = sum(plan.weights.values())
        print(f"  mixed     {', '.join(f'{100 * plan.weights[name] / total:.3g} % {name}' for name in plan.weights)}")
    print(f"  spacing   {_times(plan.spacing_mm)} mm, intensity {plan.intensity}")
    local = f", local {_times(recipe.local_crop)} ({tokens[1]} tokens)" if settings.task == "threedino" else ""
    print(f"  crops     global {_times(recipe.global_crop)} ({tokens[0]} tokens){local}")
    print(f"  training  {recipe.steps} steps of batch {recipe.batch_size} = {passes:.1f} passes over the images")
    precision = {torch.bfloat16: "bfloat16", None: "float32"}[autocast_dtype(device)]
    print(f"  compute   {world()} process(es) on {device.type}, {precision}, {default_workers()} data workers")
    print(f"  output    {folder}", flush=True)


def _print_files(folder: Path, steps_done: int, steps: int) -> None:
    stopped = f"stopped as asked after {steps_done} of {steps} steps, --c continues"
    print(f"{'done' if steps_done == steps else stopped}; files in {folder}:")
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


if __name__ == "__main__":  # torchrun -m nnssl.commands.pretrain
    sys.exit(main())
