"""Runs that SLURM queues: what is asked of it, and a job that is stopped and goes on (submitit's local executor)."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from nnssl.trainers.checkpoints import load_latest
from nnssl.trainers.cluster import minutes_of, read_wishes, submit
from tests.trainers.pretrain_processes import LOG

PATIENCE = 900  # seconds


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("90:30", 90), ("24:00:00", 1440), ("2-12:00:00", 3600), ("2-12", 3600), ("00:00:10", 1)],
)
def test_times_are_read_as_slurm_reads_them(text: str, minutes: int) -> None:
    assert minutes_of(text) == minutes


@pytest.mark.parametrize("text", ["", "a day", "1:2:3:4", "-5"])
def test_a_time_that_slurm_would_refuse_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected D-HH:MM:SS"):
        minutes_of(text)


def test_wishes_are_pairs_with_known_keys() -> None:
    assert read_wishes(["partition=gpu", "nodes=4", "time=1-0"]) == {"partition": "gpu", "nodes": "4", "time": "1-0"}
    for wrong in (["nodes"], ["colour=red"]):
        with pytest.raises(ValueError, match="expected KEY=VALUE with keys partition, nodes"):
            read_wishes(wrong)


def test_without_submitit_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match="pip install submitit"):
        submit(lambda words: 0, [], {}, name="run", folder=tmp_path)


@pytest.mark.proof
def test_a_queued_run_that_is_stopped_by_its_signal_is_queued_again_and_ends(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    from tests.trainers.pretrain_processes import main

    words = [str(tmp_path / "run"), "12"]
    job = submit(main, words, {"cluster": "local", "time": "30"}, name="toy", folder=tmp_path / "jobs")
    log = tmp_path / "run" / LOG
    deadline = time.monotonic() + PATIENCE
    while not (log.is_file() and len(log.read_text().splitlines()) >= 3):
        assert time.monotonic() < deadline, "the job does not start"
        time.sleep(0.05)
    os.kill(int(job.job_id), signal.SIGTERM)  # as a scheduler that wants its machine back
    assert job.result() == 0
    assert load_latest(tmp_path / "run")[1]["steps_done"] == 12
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(12))
    assert "Requeued job" in "".join(path.read_text() for path in (tmp_path / "jobs").glob("*.out"))
