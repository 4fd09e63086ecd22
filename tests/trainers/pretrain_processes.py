"""Pretraining of a small task in processes of its own, which may be killed, for the tests of runs at scale."""

import itertools
import json
import multiprocessing
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnssl.data.collation import collate
from nnssl.data.seeds import generator_at
from nnssl.losses.processes import rank, world
from nnssl.pretext.base import PretextTask
from nnssl.trainers.checkpoints import load_latest
from nnssl.trainers.pretraining import Run, Watcher, pretrain
from nnssl.trainers.processes import REQUEUE, joined
from tests.pretext.toys import RECIPE, toy_task, toy_volumes

CPU = torch.device("cpu")
LOG = "steps.jsonl"
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])  # so that a process starts in a moment


@dataclass(frozen=True)
class Job:
    """What to pretrain; a run that was cut goes on."""

    folder: Path
    task: str = "simmim"
    family: str = "vit"
    settings: tuple[str, ...] = ()
    steps: int = 6
    batch_size: int = 4
    save_every: int = 3
    processes: int = 1
    parallel: str = "ddp"
    accumulate: int = 1
    shown: int = 0  # steps whose batches are kept


def shares(task: PretextTask, job: Job, first_step: int) -> Iterator[dict[str, Tensor]]:
    """This process's share of every batch; the number of a sample decides what it is."""
    volumes, own = toy_volumes(8), job.batch_size // world()
    for step in itertools.count(first_step):
        first = step * job.batch_size + rank() * own
        numbers = range(first, first + own)
        yield collate([task.prepare(volumes[k % len(volumes)], generator_at(7, 1, k)) for k in numbers])


class Steps(Watcher):
    """Appends the numbers of each step to a file and keeps them there through a kill."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = (folder / LOG).open("a", buffering=1)

    def stepped(self, step: int, values: dict[str, float]) -> None:
        self.file.write(json.dumps({"step": step} | values) + "\n")


def work(job: Job) -> int:
    """Train on the processes that the environment names; the steps done."""
    recipe = replace(
        RECIPE, steps=job.steps, batch_size=job.batch_size, save_every=job.save_every, warmup_fraction=0.1, seed=7
    )
    with joined(CPU) as device:
        task = toy_task(job.task, job.settings, family=job.family, recipe=recipe)
        run = Run(job.folder, device, resume=True, parallel=job.parallel, accumulate=job.accumulate)
        if rank() == 0:
            run = replace(run, watcher=Steps(job.folder))
        _keep_batches(task, job)
        return pretrain(task, lambda first: shares(task, job, first), recipe=recipe, run=run)


def main(words: Sequence[str]) -> int:
    """A command: FOLDER STEPS."""
    job = Job(Path(words[0]), steps=int(words[1]))
    return 0 if work(job) == job.steps else REQUEUE


def seen(job: Job) -> list[dict[str, Tensor]]:
    """What the networks saw in the first steps: (V, samples, ...) of all processes and micro-batches together."""
    steps = []
    for step in range(job.shown):
        parts = []
        for number in range(job.processes):
            for part in range(job.accumulate):
                name = f"batch_{number}_{step * job.accumulate + part}.pt"
                parts.append(torch.load(job.folder / name, weights_only=True))
        samples = job.batch_size // len(parts)
        steps.append(
            {key: torch.cat([part[key].unflatten(0, (-1, samples)) for part in parts], dim=1) for key in parts[0]}
        )
    return steps


def start(job: Job) -> list[Any]:
    """Start the processes of a job."""
    port = _free_port()
    started = [FORKS.Process(target=_one, args=(job, number, port)) for number in range(job.processes)]
    for process in started:
        process.start()
    return started


def finish(job: Job) -> Path:
    """Run a job to its end; its folder."""
    for process in start(job):
        process.join()
        assert process.exitcode == 0
    return job.folder


def records(folder: Path) -> list[dict[str, float]]:
    """The numbers of each step that was logged, repeated steps included."""
    return list(_records(folder / LOG))


def final(folder: Path) -> dict[str, Tensor]:
    """Tensors of task and optimiser at the end, by name."""
    _, state = load_latest(folder)
    tensors = dict(state["task"])
    for index, values in state["optimiser"]["state"].items():
        tensors |= {f"{index}.{name}": value for name, value in values.items()}
    return tensors


def _keep_batches(task: PretextTask, job: Job) -> None:
    """Write what the task is given, for `seen`."""
    count = itertools.count()

    def keep(module: torch.nn.Module, arguments: tuple[dict[str, Tensor]]) -> None:
        number = next(count)
        if number < job.shown * job.accumulate:
            job.folder.mkdir(parents=True, exist_ok=True)
            torch.save(arguments[0], job.folder / f"batch_{rank()}_{number}.pt")

    task.register_forward_pre_hook(keep)


def _one(job: Job, number: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(job.processes), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "LOCAL_RANK": str(number), "LOCAL_WORLD_SIZE": str(job.processes)}
    done = work(job)
    raise SystemExit(0 if done == job.steps else REQUEUE)


def _records(path: Path) -> Iterator[dict[str, float]]:
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # cut in the middle by a kill
            continue


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])
