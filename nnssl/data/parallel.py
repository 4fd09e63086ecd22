"""One function over many cases in worker processes: a case that fails, or kills its worker, stops only itself."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

PROCESSES_VARIABLE = "nnUNet_def_n_proc"  # nnU-Net's
KILLED = (
    "its worker process was killed, most likely for lack of memory; use fewer processes (-np 1) or a larger machine"
)


class Outcomes(NamedTuple):
    """What came back, by key; every key is in exactly one of the two."""

    results: dict[str, Any]
    failures: dict[str, str]  # one line each


def default_processes() -> int:
    """Workers by default: at most two (memory), fewer where nnUNet_def_n_proc or the machine says so."""
    return max(1, min(2, int(os.environ.get(PROCESSES_VARIABLE, 2)), os.cpu_count() or 1))


def map_cases(
    function: Callable[..., Any], jobs: dict[str, tuple[Any, ...]], *, processes: int, title: str
) -> Outcomes:
    """Call `function(*jobs[key])` for every key and collect results and failures.

    Workers come from a clean server process (never a fork of this one, whose threads would hang it); one process, or
    one job, runs here. A worker killed by the system costs only its own case: the others run again.
    """
    results: dict[str, Any] = {}
    failures: dict[str, str] = {}
    with tqdm(total=len(jobs), desc=title, unit="case") as bar:
        if processes <= 1 or len(jobs) <= 1:
            for key, arguments in jobs.items():
                _collect(key, partial(function, *arguments), results, failures)
                bar.update()
            return Outcomes(results, failures)
        _run_pool(function, jobs, min(processes, len(jobs)), (results, failures), bar)
        for key in [key for key in jobs if key not in results and key not in failures]:
            _run_pool(function, {key: jobs[key]}, 1, (results, failures), bar)
            if key not in results:
                failures.setdefault(key, KILLED)
    return Outcomes(results, failures)


def _run_pool(
    function: Callable[..., Any],
    jobs: dict[str, tuple[Any, ...]],
    processes: int,
    outcomes: tuple[dict[str, Any], dict[str, str]],
    bar: Any,
) -> None:
    """Fill `outcomes` until all is done or a worker dies; a killed worker leaves its and later jobs open."""
    with ProcessPoolExecutor(processes, mp_context=_context(), initializer=_one_thread) as pool:
        futures: dict[Future[Any], str] = {}
        try:
            for key, arguments in jobs.items():
                futures[pool.submit(function, *arguments)] = key
            for future in as_completed(futures):
                _collect(futures[future], future.result, *outcomes)
                bar.update()
        except BrokenProcessPool:
            for future in futures:
                future.cancel()


def _collect(key: str, call: Callable[[], Any], results: dict[str, Any], failures: dict[str, str]) -> None:
    try:
        results[key] = call()
    except BrokenProcessPool:
        raise
    except Exception as error:  # any fault of one case, ITK's RuntimeError and disk errors included
        failures[key] = " ".join(f"{error or type(error).__name__}".split())


def _context() -> Any:
    """A forkserver that has imported the heavy packages once, where the system has one; else spawn."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nnssl.data.fingerprint", "nnssl.data.preprocessing"])
    return context


def _one_thread() -> None:
    """As many workers as cores: a thread each is fastest."""
    torch.set_num_threads(1)
