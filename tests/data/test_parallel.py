"""Worker processes: failures stay with their case, a killed worker too."""

import os
from pathlib import Path

import pytest

from nnssl.data.parallel import KILLED, map_cases


def work(number: int, folder: str) -> int:
    """Fails for 1, kills its process for 2; others are doubled."""
    if number == 1:
        raise RuntimeError("bad\nscan")
    if number == 2:
        os._exit(9)
    (Path(folder) / str(number)).touch()
    return 2 * number


def test_a_failing_case_stops_only_itself(tmp_path: Path) -> None:
    outcomes = map_cases(work, {name: (int(name), str(tmp_path)) for name in "013"}, processes=1, title="")
    assert outcomes.results == {"0": 0, "3": 6}
    assert outcomes.failures == {"1": "bad scan"}


@pytest.mark.slow
def test_a_killed_worker_costs_only_its_own_case(tmp_path: Path) -> None:
    outcomes = map_cases(work, {name: (int(name), str(tmp_path)) for name in "012345"}, processes=2, title="")
    assert outcomes.results == {"0": 0, "3": 6, "4": 8, "5": 10}
    assert outcomes.failures == {"1": "bad scan", "2": KILLED}
