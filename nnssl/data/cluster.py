"""The cases of one call on a Dask cluster (package `distributed`, optional): its workers share the file system."""

from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from nnssl.data.parallel import KILLED, Jobs, Outcomes, one_line


def map_on_cluster(
    function: Callable[..., Any], jobs: Jobs, *, scheduler: str, title: str, fail_fast: bool = False
) -> Outcomes:
    """`map_cases` on the workers of a running Dask scheduler; a case whose worker dies runs again on another one.

    Args:
        function: importable on the workers, where this package is installed.
        jobs: arguments by key.
        scheduler: address, tcp://host:8786.
        title: of the progress bar.
        fail_fast: stop at the first failure.

    Raises:
        ValueError: the package is missing, or nothing answers at this address.
    """
    try:
        from distributed import Client, KilledWorker, as_completed
    except ImportError as error:
        raise ValueError(
            f"-scheduler {scheduler}: the package 'distributed' is needed and not installed here ({error}); "
            "pip install distributed, on the workers too, or leave -scheduler out"
        ) from error
    outcomes = Outcomes({}, {})
    try:
        client = Client(scheduler, timeout="20s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"-scheduler {scheduler}: no Dask scheduler answers ({one_line(error)}); start one with 'dask scheduler' "
            "and give its address, tcp://host:8786"
        ) from error
    with client, tqdm(total=len(jobs), desc=title, unit="case") as bar:
        futures = {client.submit(function, *arguments, pure=False): key for key, arguments in jobs.items()}
        for future in as_completed(futures, loop=client.loop):
            key, fault = futures[future], future.exception()
            if fault is None:
                outcomes.results[key] = future.result()
            else:
                outcomes.failures[key] = KILLED if isinstance(fault, KilledWorker) else one_line(fault)
                if fail_fast:
                    client.cancel(list(futures), force=True)
                    break
            bar.update()
    return outcomes
