"""`nnssl_pretrain`: train an encoder on stored volumes without labels."""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from nnssl.commands import command_line
from nnssl.commands.pretrain_list import print_tables
from nnssl.commands.pretrain_text import print_files, print_header
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
from nnssl.trainers.following import Follower, Watching, checked_every, looks_at, saving
from nnssl.trainers.loggers import LOGGERS, RunCard, check_loggers
from nnssl.trainers.pretrain_log import RunLog
from nnssl.trainers.pretrain_plan import folders_of, read_plan, weighted
from nnssl.trainers.pretrain_run import EncoderWriter, RunSettings, is_begun, record_run, run_folder
from nnssl.trainers.pretraining import Run, autocast_dtype, pretrain
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
    _add_following(parser)
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


def _add_following(parser: argparse.ArgumentParser) -> None:
    """Flags that say how a run is watched; they do not change what is learnt, and a continued run may change them."""
    parser.add_argument(
        "-logger", nargs="+", default=["tensorboard"], metavar="LOGGER",
        help=f"[OPTIONAL] where numbers go besides log.jsonl, of: {', '.join(LOGGERS)}; default tensorboard",
    )  # fmt: skip
    parser.add_argument(
        "-probe_dataset", metavar="DATASET",
        help="[OPTIONAL] score the encoder so far on labelled scans of this preprocessed data set: nearest neighbours "
        "and a linear probe on 16 crops",
    )  # fmt: skip
    parser.add_argument(
        "-probe_every", type=int, metavar="N",
        help="[OPTIONAL] steps between pictures of features, and probes; a multiple of save_every; 0: never; default: "
        "about 20 per run",
    )  # fmt: skip


def _work(arguments: argparse.Namespace, words: Sequence[str]) -> int:
    if arguments.list:
        if arguments.t:
            task_named(arguments.t)
        print_tables(arguments.t)
        return 0
    settings, task_assignments = _settings(arguments)
    watching = _watching(arguments, settings.recipe)
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
        return _train(settings, task_assignments, run, watching=watching, exclusions=read_exclusions(arguments.exclude))


def _queue(arguments: argparse.Namespace, words: Sequence[str], name: str) -> int:
    folder, wishes = run_folder(name, arguments.c), read_wishes(arguments.slurm)
    job = submit(main, words, wishes, name=name, folder=folder / "jobs")
    print(f"queued as job {job.job_id}; logs and requeues in {folder / 'jobs'}; the run in {folder}")
    return 0


def _train(
    settings: RunSettings, task_assignments: Sequence[str], run: Run, *, watching: Watching, exclusions: Sequence[str]
) -> int:
    recipe, device = settings.recipe, run.device
    check_divisible(recipe.batch_size, run.accumulate)
    volumes = StoredVolumes(folders_of(settings.plan, settings.fold, exclusions), settings.min_side)
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
            looks = looks_at(watching, settings, volumes, folder=run.folder, exclusions=exclusions)
            values = settings.as_json(task)
            record = record_run(run.folder, values, cases=volumes.cases, resume=run.resume)
            if start is not None:
                record = all_cases(start, record, volumes.cases)
            print_header(settings, volumes, run.folder, device=device, watching=watching)
            writer = EncoderWriter(run.folder, task, settings, record=record)
            follower = Follower(watching.every, recipe.steps, device=device, looks=looks)
            card = RunCard(run.folder, run.folder.name, values)
            log = RunLog(card, recipe, saving(writer, follower), loggers=watching.loggers)
            closing.callback(log.close)
            run = dataclasses.replace(run, watcher=log)
        steps_done = pretrain(task, lambda first: load(first_step=first), recipe=recipe, run=run)
    if rank() == 0:
        print_files(run.folder, steps_done, recipe.steps)
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
    if knows(task.Config, "depth_axis"):  # the axis that a task crops apart is the plan's, unless the user says so
        for_task = [f"depth_axis={plan.depth_axis}", *for_task]
    min_side = arguments.min_side if arguments.min_side is not None else stage.min_side if stage else 0
    settings = RunSettings(name, plan, recipe, arguments.f, min_side, arguments.stage, arguments.pretrained_run)
    check_crop(settings.encoder, recipe.global_crop)
    return settings, for_task


def _watching(arguments: argparse.Namespace, recipe: PretrainRecipe) -> Watching:
    """How the run is watched, checked as far as no data are needed."""
    check_loggers(arguments.logger)
    dataset = dataset_name(arguments.probe_dataset) if arguments.probe_dataset else None
    return Watching(checked_every(arguments.probe_every, recipe), dataset, tuple(arguments.logger))


def _check_known(assignments: Sequence[str], config: type) -> None:
    for assignment in assignments:
        if "=" not in assignment or not knows(config, assignment):
            known = ", ".join([*_names(PretrainRecipe), *_names(config)])
            raise ValueError(f"--set {assignment}: expected key=value with a known key; known: {known}")


def _names(config: type) -> list[str]:
    return [field.name for field in dataclasses.fields(config)]


if __name__ == "__main__":  # torchrun -m nnssl.commands.pretrain
    sys.exit(main())
