"""Preprocessing killed at random, here and on a Dask worker: the files are those of an uninterrupted run."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnssl.data.case_store import PARTIAL
from tests.data.raw_scans import write_dataset

CASES = 12
WORDS = ["-d", "901", "902", "-e", "vit_tiny_8", "-np", "2"]
COMMAND = [sys.executable, "-c", "import sys; from nnssl.commands.plan_and_preprocess import main; sys.exit(main())"]


def folders(root: Path, name: str) -> dict[str, str]:
    """The environment of one run; the raw data are shared."""
    (root / name).mkdir(exist_ok=True)
    keys = {"nnUNet_raw": root / "raw", "nnUNet_preprocessed": root / name, "nnUNet_results": root / "results"}
    return {**os.environ, **{key: str(path) for key, path in keys.items()}, "OMP_NUM_THREADS": "1"}


def files(root: Path, name: str) -> dict[str, bytes]:
    return {
        str(path.relative_to(root / name)): path.read_bytes() for path in (root / name).rglob("*") if path.is_file()
    }


def stored(root: Path, name: str) -> list[Path]:
    """Complete cases; what is being written comes and goes in deeper folders."""
    return [path for path in (root / name).glob("*/*/*.b2nd") if not path.stem.endswith("_seg")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two raw data sets and their uninterrupted preprocessing in `whole`."""
    root = tmp_path_factory.mktemp("killed")
    write_dataset(root / "raw", "Dataset901_Blob", cases=CASES)
    write_dataset(root / "raw", "Dataset902_Bare", cases=CASES, labelled=False, seed=1)
    subprocess.run([*COMMAND, *WORDS], env=folders(root, "whole"), check=True, capture_output=True)
    assert len(list((root / "whole").rglob("*.pkl"))) == 3 * CASES
    return root


@pytest.mark.proof
def test_five_random_kills_change_no_byte(whole: Path) -> None:
    environment, generator, done = folders(whole, "killed"), random.Random(5), [0]
    for _ in range(5):
        process = subprocess.Popen(
            [*COMMAND, *WORDS], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        wanted = done[-1] + generator.randint(1, 4)
        while len(stored(whole, "killed")) < wanted and process.poll() is None:
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        done.append(len(stored(whole, "killed")))
    assert done == sorted(done) and done[-1] < 3 * CASES  # nothing is done twice, and every kill hit the work
    finished = subprocess.run([*COMMAND, *WORDS], env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert files(whole, "killed") == files(whole, "whole"), done
    assert not list((whole / "killed").rglob(PARTIAL))


@pytest.mark.proof
def test_a_killed_dask_worker_changes_no_byte(whole: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="optional: pip install distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        words = [*COMMAND, *WORDS, "-scheduler", cluster.scheduler_address]
        process = subprocess.Popen(words, env=folders(whole, "cluster"), stdout=subprocess.DEVNULL)
        while not list(stored(whole, "cluster")):
            assert process.poll() is None
            time.sleep(0.05)
        victim = next(iter(cluster.workers.values()))
        os.kill(victim.pid, signal.SIGKILL)
        assert process.wait() == 0
    assert files(whole, "cluster") == files(whole, "whole")
