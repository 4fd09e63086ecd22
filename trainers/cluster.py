"""A run as a SLURM job through submitit: stopped at the time limit, saved, queued again until it is done."""

import os
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnssl.trainers.processes import REQUEUE, RESTARTS

Command = Callable[[Sequence[str]], int]  # a console script's main

SAVING_TIME_S = 180  # between the signal and the kill at the time limit
REQUEUES = 1000  # nine days in jobs of an hour are 216
KNOWN = ("partition", "nodes", "gpus", "time", "cpus", "memory", "account", "qos", "constraint", "cluster")


class QueuedRun:
    """What submitit calls in each process of a job, and asks for a successor when the job is stopped."""

    def __init__(self, command: Command, words: Sequence[str], restarts: int = 0) -> None:
        self.command, self.words, self.restarts = command, list(words), restarts

    def __call__(self) -> int:
        """Run; a run that was asked to stop has saved its state and is queued again."""
        import submitit

        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        os.environ[RESTARTS] = str(self.restarts)
        code = self.command(self.words)
        if code == REQUEUE:  # the loop had the signals to itself; now submitit may have its own
            signal.raise_signal(submitit.JobEnvironment._usr_sig())
        return code

    def checkpoint(self) -> Any:
        """The same run again, which goes on where it was saved."""
        import submitit

        return submitit.helpers.DelayedSubmission(QueuedRun(self.command, self.words, self.restarts + 1))


def is_queued() -> bool:
    """Whether this process belongs to a job that `submit` made."""
    return RESTARTS in os.environ


def submit(command: Command, words: Sequence[str], wishes: Mapping[str, str], *, name: str, folder: Path) -> Any:
    """Queue a run; returns submitit's job.

    Args:
        command: what every process calls with `words`.
        wishes: of `read_wishes`.
        name: of the job.
        folder: of the job's logs.

    Raises:
        ValueError: submitit is not installed.
    """
    try:
        import submitit
    except ImportError as error:
        raise ValueError("--slurm: submitit is not installed; pip install submitit") from error
    cluster = wishes.get("cluster")  # None: SLURM where it is found; "local": processes on this machine
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster, slurm_max_num_timeout=REQUEUES)
    executor.update_parameters(**_parameters(wishes, name))
    return executor.submit(QueuedRun(command, words))


def read_wishes(assignments: Sequence[str]) -> dict[str, str]:
    """`partition=gpu nodes=4 gpus=8 time=24:00:00` as a mapping.

    Raises:
        ValueError: not KEY=VALUE, or an unknown key.
    """
    wishes = dict(assignment.split("=", 1) for assignment in assignments if "=" in assignment)
    if len(wishes) < len(assignments) or not set(wishes) <= set(KNOWN):
        raise ValueError(f"--slurm {' '.join(assignments)}: expected KEY=VALUE with keys {', '.join(KNOWN)}")
    return wishes


def minutes_of(time: str) -> int:
    """SLURM's D-HH:MM:SS, HH:MM:SS, MM:SS or minutes as whole minutes, at least 1.

    >>> minutes_of("24:00:00")
    1440
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if match is None:
        raise ValueError(f"--slurm time={time}: expected D-HH:MM:SS, HH:MM:SS, MM:SS or minutes")
    days, *numbers = (int(number) if number is not None else None for number in match.groups())
    first, second, third = numbers
    if days is not None or third is not None:  # hours come first
        seconds = ((days or 0) * 24 + (first or 0)) * 3600 + (second or 0) * 60 + (third or 0)
    else:
        seconds = (first or 0) * 60 + (second or 0)
    return max(1, seconds // 60)


def _parameters(wishes: Mapping[str, str], name: str) -> dict[str, Any]:
    gpus = int(wishes.get("gpus", "0"))
    chosen = {
        "name": name,
        "nodes": int(wishes.get("nodes", "1")),
        "tasks_per_node": max(1, gpus),
        "gpus_per_node": gpus,
        "timeout_min": minutes_of(wishes.get("time", "24:00:00")),
        "slurm_signal_delay_s": SAVING_TIME_S,
    }
    chosen |= {"cpus_per_task": int(wishes["cpus"])} if "cpus" in wishes else {}
    chosen |= {"slurm_mem": wishes["memory"]} if "memory" in wishes else {}
    return chosen | {f"slurm_{key}": wishes[key] for key in KNOWN if key in wishes and key in _AS_THEY_ARE}


_AS_THEY_ARE = ("partition", "account", "qos", "constraint")
