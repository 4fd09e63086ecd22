"""The memory rule: an estimate from the header that covers what a case takes, and cases in work that fit the memory."""

import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnssl.data import parallel
from nnssl.data.case_memory import bytes_needed, bytes_to_read
from nnssl.data.parallel import Terms, map_cases
from nnssl.dataset_conversion.raw_dataset import Case
from tests.data.raw_scans import make_image


def log(number: int, folder: str) -> None:
    """Notes when a case begins and ends."""
    for word in ("begin", "end"):
        (Path(folder) / f"{word}{number}").write_text(repr(time.monotonic()))
        time.sleep(0.3)


def test_the_estimate_counts_voxels_channels_and_labels(tmp_path: Path) -> None:
    SimpleITK.WriteImage(make_image(np.zeros((10, 20, 30), np.int16), (1.0, 1.0, 2.0)), tmp_path / "a.nii.gz")
    scan = tmp_path / "a.nii.gz"
    bare, full = Case("a", (scan,), None), Case("a", (scan, scan), scan)
    assert bytes_to_read(bare) == 6000 * 20
    assert bytes_to_read(full) == 6000 * (2 * 20 + 16)
    stored = [{"spacing": [1.0, 1.0, 1.0]}, {"spacing": [2.0, 2.0, 2.0]}]
    assert bytes_needed(bare, stored) == 6000 * 20 + 12000 * (12 + 18)
    assert bytes_needed(Case("a", (tmp_path / "absent.nii.gz",), None), stored) == 0


@pytest.mark.slow
def test_cases_that_do_not_fit_together_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "free_bytes", lambda: 4e9)
    jobs = {name: (int(name), str(tmp_path)) for name in "01"}
    map_cases(log, jobs, processes=2, title="", terms=Terms(lambda key: 3e9))
    times = {path.name: float(path.read_text()) for path in tmp_path.iterdir()}
    first, second = sorted("01", key=lambda name: times[f"begin{name}"])
    assert times[f"end{first}"] <= times[f"begin{second}"]


def test_free_memory_is_known_here() -> None:
    free = parallel.free_bytes()
    assert free is None or 0 < free < 1e14
