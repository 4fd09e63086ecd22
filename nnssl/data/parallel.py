"""One function over many cases in worker processes: as many at once as memory allows; a fault stops only its case."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_end
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from nnssl.data.freed_memory import return_freed_memory

PROCESSES_VARIABLE = "nnUNet_def_n_proc"  # nnU-Net's
KILLED = (
    "its worker process was killed, most likely for lack of memory; use fewer processes (-np 1) or a larger machine"
)
MEMORY_SHARE = 0.7  # of what is free at the start
WORKER_BYTES = 4e8  # of a worker process with its imports

Jobs = dict[str, tuple[Any, ...]]
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


class Outcomes(NamedTuple):
    """What came back, by key; every key is in exactly one of the two, unless `fail_fast` left some out."""

    results: dict[str, Any]
    failures: dict[str, str]  # one line each


class Terms(NamedTuple):
    """How cases are run.

    bytes_needed: memory of a case, by key, in bytes; None: not counted.
    fail_fast: stop at the first failure.
    scheduler: address of a Dask scheduler that runs the cases instead of processes here.
    """

    bytes_needed: Callable[[str], float] | None = None
    fail_fast: bool = False
    scheduler: str | None = None


def default_processes() -> int:
    """Workers by default: one per core, at most $nnUNet_def_n_proc where it is set; memory may keep some idle."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(os.environ.get(PROCESSES_VARIABLE, cores))))


def map_cases(
    function: Callable[..., Any], jobs: Jobs, *, processes: int, title: str, terms: Terms | None = None
) -> Outcomes:
    """Call `function(*jobs[key])` for every key and collect results and failures.

    Workers come from a clean server process (never a fork of this one, whose threads would hang it); one process, or
    one job, runs here. A worker killed by the system costs only its own case: those that were in work beside it run
    again, alone.
    """
    terms = terms or Terms()
    if terms.scheduler:
        from nnssl.data.cluster import map_on_cluster  # only there is the optional package needed

        return map_on_cluster(function, jobs, scheduler=terms.scheduler, title=title, fail_fast=terms.fail_fast)
    with tqdm(total=len(jobs), desc=title, unit="case") as bar:
        work = _Work(function, jobs, Outcomes({}, {}), terms, bar)
        if processes <= 1 or len(jobs) <= 1:
            work.run_here()
        else:
            work.run_in_pools(min(processes, len(jobs)))
    return work.outcomes


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(f"{error or type(error).__name__}".split())


def free_bytes() -> float | None:
    """Memory that can still be used: of the machine, and of the control group where that is less; None: unknown."""
    free: list[float] = []
    if _MEMINFO.is_file():
        lines = [line.split() for line in _MEMINFO.read_text(encoding="ascii").splitlines()]
        free += [1024.0 * int(line[1]) for line in lines if line[0] == "MemAvailable:"]
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if limit.is_file() and used.is_file() and limit.read_text(encoding="ascii").strip().isdigit():
        free.append(float(limit.read_text(encoding="ascii")) - float(used.read_text(encoding="ascii")))
    return min(free, default=None)


class _Work(NamedTuple):
    """The cases of one call, and what has come back so far."""

    function: Callable[..., Any]
    jobs: Jobs
    outcomes: Outcomes
    terms: Terms
    bar: Any

    @property
    def stopped(self) -> bool:
        return self.terms.fail_fast and bool(self.outcomes.failures)

    def run_here(self) -> None:
        for key, arguments in self.jobs.items():
            if self.stopped:
                return
            try:
                self.outcomes.results[key] = self.function(*arguments)
            except Exception as error:  # any fault of one case, ITK's RuntimeError and disk errors included
                self.outcomes.failures[key] = one_line(error)
            self.bar.update()

    def run_in_pools(self, processes: int) -> None:
        waiting = list(self.jobs)
        while waiting and not self.stopped:
            suspects = self._run_pool(waiting, processes)
            if waiting and not suspects and not self.stopped:
                suspects = [waiting.pop(0)]  # no worker came to life
            for key in suspects:
                if self._run_pool([key], 1):
                    self.outcomes.failures[key] = KILLED
                    self.bar.update()

    def _run_pool(self, waiting: list[str], processes: int) -> list[str]:
        """Take cases from `waiting` until it is empty or a worker dies; the cases that were in work then."""
        budget, needed = self._budget(), self.terms.bytes_needed or (lambda key: 0.0)
        in_work: dict[Future[Any], tuple[str, float]] = {}
        with ProcessPoolExecutor(processes, mp_context=_context(), initializer=_start_worker) as pool:
            while in_work or (waiting and not self.stopped):
                try:
                    while waiting and len(in_work) < processes and not self.stopped:
                        size = WORKER_BYTES + needed(waiting[0])
                        if in_work and size + sum(other for _, other in in_work.values()) > budget:
                            break
                        future = pool.submit(self.function, *self.jobs[waiting[0]])
                        in_work[future] = (waiting.pop(0), size)
                    for future in wait(in_work, return_when=FIRST_COMPLETED).done:
                        self._collect(in_work[future][0], future)
                        del in_work[future]
                except BrokenProcessPool:
                    return [key for key, _ in in_work.values()]
        return []

    def _collect(self, key: str, future: Future[Any]) -> None:
        try:
            self.outcomes.results[key] = future.result()
        except BrokenProcessPool:
            raise
        except Exception as error:  # as in `run_here`
            self.outcomes.failures[key] = one_line(error)
        self.bar.update()

    def _budget(self) -> float:
        free = free_bytes() if self.terms.bytes_needed else None
        return float("inf") if free is None else MEMORY_SHARE * free


def _context() -> Any:
    """A forkserver that has imported the heavy packages once, where the system has one; else spawn."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nnssl.data.fingerprint", "nnssl.data.preprocessing"])
    return context


def _start_worker() -> None:
    """As many workers as cores: a thread each is fastest. A worker ends with the process that started it."""
    torch.set_num_threads(1)
    return_freed_memory()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=([parent.sentinel],), daemon=True).start()


def _end_with(sentinels: Sequence[int]) -> None:
    wait_for_end(sentinels)
    os._exit(1)
