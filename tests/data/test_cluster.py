"""A Dask cluster: a line where the package or the scheduler is missing, and the same results where they are there."""

import sys

import pytest

from nnssl.data.parallel import Terms, map_cases


def double(number: int) -> int:
    """Fails for 1."""
    if number == 1:
        raise RuntimeError("bad\nscan")
    return 2 * number


JOBS = {name: (int(name),) for name in "0123"}


def test_a_missing_package_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"-scheduler tcp://x:1: the package 'distributed' is needed") as caught:
        map_cases(double, JOBS, processes=1, title="", terms=Terms(scheduler="tcp://x:1"))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_cases_run_on_a_cluster_and_failures_stay_with_their_case() -> None:
    distributed = pytest.importorskip("distributed", reason="optional: pip install distributed")
    words = {"processes": False, "n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**words, protocol="tcp://") as cluster:
        terms = Terms(scheduler=cluster.scheduler_address)
        outcomes = map_cases(double, JOBS, processes=1, title="", terms=terms)
    assert outcomes.results == {"0": 0, "2": 4, "3": 6}
    assert outcomes.failures == {"1": "bad scan"}
    with pytest.raises(ValueError, match="no Dask scheduler answers"):
        map_cases(double, JOBS, processes=1, title="", terms=terms)
