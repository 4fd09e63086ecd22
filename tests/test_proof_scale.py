"""Proof that a run is the same experiment on any number of processes and survives any kill (`make proof`)."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nnssl.commands.plan_and_preprocess import main as plan_main
from nnssl.trainers.checkpoints import LATEST, load_latest
from nnssl.trainers.processes import REQUEUE
from tests.toy_dataset import set_environment
from tests.trainers.pretrain_processes import Job, final, finish, records, seen, start

PATIENCE = 300  # seconds for a step
DROPPING = ("drop_path=0.3",)

pytestmark = pytest.mark.proof


@pytest.mark.parametrize(
    ("processes", "kills", "how"),
    [(1, 20, signal.SIGKILL), (2, 5, signal.SIGKILL), (1, 20, signal.SIGTERM), (2, 5, signal.SIGTERM)],
)
def test_a_run_that_is_killed_at_random_ends_bit_for_bit_as_one_that_is_not(
    tmp_path: Path, processes: int, kills: int, how: signal.Signals
) -> None:
    job = Job(tmp_path / "whole", "threedino", settings=DROPPING, steps=200, save_every=7, processes=processes)
    finish(job)
    cut = replace(job, folder=tmp_path / "cut")
    chance = random.Random(0)
    for _ in range(kills):
        _cut(cut, how, after=chance.randint(1, 200 // kills), wait=chance.random() * 0.1)
    finish(cut)
    expected, found = final(job.folder), final(cut.folder)
    assert set(expected) == set(found)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert sorted({int(record["step"]) for record in records(cut.folder)}) == list(range(200))
    assert not list(cut.folder.glob(f".{LATEST}.*"))


def _cut(job: Job, how: signal.Signals, *, after: int, wait: float) -> None:
    """Start the processes and kill one of them, or ask all of them to stop, some steps later."""
    before, processes = len(records(job.folder)), start(job)
    deadline = time.monotonic() + PATIENCE
    while len(records(job.folder)) < before + after and all(process.is_alive() for process in processes):
        assert time.monotonic() < deadline, "no step was made"
        time.sleep(0.01)
    time.sleep(wait)
    for process in processes[-1:] if how == signal.SIGKILL else processes:
        os.kill(process.pid, how)
    for process in processes:
        if how == signal.SIGKILL:
            process.kill()  # torchrun does so when one has died
        process.join()
        assert process.exitcode in ((-how,) if how == signal.SIGKILL else (REQUEUE, 0, -how))


@pytest.mark.parametrize(("task", "family"), [("threedino", "vit"), ("smit", "swin"), ("contrastive", "vit")])
def test_one_two_and_four_processes_see_and_learn_the_same(tmp_path: Path, task: str, family: str) -> None:
    jobs = [
        Job(
            tmp_path / f"{processes}",
            task,
            settings=DROPPING,
            family=family,
            steps=50,
            save_every=50,
            batch_size=8,
            processes=processes,
            shown=3,
        )
        for processes in (1, 2, 4)
    ]
    curves = [[record["loss"] for record in records(finish(job))] for job in jobs]
    for job, curve in zip(jobs[1:], curves[1:], strict=True):
        assert curve == pytest.approx(curves[0], rel=1e-4)
        for step, joint in zip(seen(job), seen(jobs[0]), strict=True):
            assert all(torch.equal(step[name], joint[name]) for name in joint)
    assert len(curves[0]) == 50


def test_four_micro_batches_learn_what_one_batch_does(tmp_path: Path) -> None:
    job = Job(tmp_path / "one", "simmim", settings=DROPPING, steps=50, save_every=50, batch_size=8, shown=3)
    parts = replace(job, folder=tmp_path / "four", accumulate=4)
    one, four = ([record["loss"] for record in records(finish(each))] for each in (job, parts))
    assert four == pytest.approx(one, rel=1e-4)
    for found, expected in zip(seen(parts), seen(job), strict=True):
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("task", "family"), [("threedino", "vit"), ("smit", "swin")])
def test_fsdp_is_ddp_to_rounding_and_goes_on_with_another_number_of_processes(
    tmp_path: Path, task: str, family: str
) -> None:
    job = Job(tmp_path / "ddp", task, family=family, steps=12, save_every=4, batch_size=8, processes=2)
    fsdp = replace(job, folder=tmp_path / "fsdp", parallel="fsdp")
    replicated, sharded = final(finish(job)), final(finish(fsdp))
    for name, value in replicated.items():
        torch.testing.assert_close(
            sharded[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name} {text}"
        )
    changed = replace(fsdp, folder=tmp_path / "changed")
    for processes, parallel in ((2, "fsdp"), (4, "fsdp"), (1, "ddp")):
        step = replace(changed, processes=processes, parallel=parallel)
        if processes == 1:
            finish(step)
        else:
            _cut(step, signal.SIGTERM, after=3, wait=0.0)
            assert load_latest(step.folder)[1]["steps_done"] < 12
    for name, value in final(changed.folder).items():
        torch.testing.assert_close(
            value, replicated[name], rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name} {text}"
        )


HIPPOCAMPUS = "Dataset004_Hippocampus"
PRETRAIN = ["4", "-t", "threedino", "-e", "vit_tiny_8", "-device", "cpu", "--set", "steps=60", "save_every=5"]
SMALL = ["batch_size=4", "global_crop=[32,32,32]", "local_crop=[16,16,16]", "prototypes=256", "hidden=64"]


@pytest.mark.parametrize(("processes", "kills"), [(1, 6), (2, 3)])
def test_the_command_is_killed_on_real_scans_and_ends_with_the_same_bytes(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int, kills: int
) -> None:
    set_environment(tmp_path, monkeypatch)
    _take_scans(shared_data / HIPPOCAMPUS, tmp_path / "nnUNet_raw" / HIPPOCAMPUS)
    assert plan_main(["-d", "4", "-e", "vit_tiny_8", "-c", "pretrain"]) == 0
    assert _pretrain("whole", processes).wait() == 0
    chance, log = random.Random(1), tmp_path / "nnUNet_results/pretrained/cut/log.jsonl"
    for kill in range(kills):
        running, least = _pretrain("cut", processes, *(["--c"] if kill else [])), _lines(log)
        steps, deadline = chance.randint(1, 60 // kills), time.monotonic() + PATIENCE
        while _lines(log) - least < steps:
            least = min(least, _lines(log))  # a continued run drops what came after its checkpoint
            assert running.poll() is None and time.monotonic() < deadline, "no step was made"
            time.sleep(0.01)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    assert _pretrain("cut", processes, "--c").wait() == 0
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == list(range(60))
    whole, cut = (load_latest(log.parent.parent / name)[1] for name in ("whole", "cut"))
    assert [key for key in whole["task"] if not torch.equal(whole["task"][key], cut["task"][key])] == []
    files = [log.parent.parent / name / "encoder.safetensors" for name in ("whole", "cut")]
    first, second = (file.read_bytes() for file in files)
    assert len(first) == len(second) and first[-1_000_000:] == second[-1_000_000:]


def _take_scans(source: Path, target: Path) -> None:
    """Eight hippocampus scans without labels."""
    (target / "imagesTr").mkdir(parents=True)
    scans = sorted((source / "imagesTr").glob("*.nii.gz"))[:8]
    for scan in scans:
        shutil.copy(scan, target / "imagesTr")
    facts = json.loads((source / "dataset.json").read_text())
    (target / "dataset.json").write_text(json.dumps(facts | {"numTraining": len(scans)}))


def _pretrain(run: str, processes: int, *words: str) -> subprocess.Popen[bytes]:
    """`nnssl_pretrain` in a process group of its own, alone or under torchrun."""
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    command = [*launcher, "nnssl.commands.pretrain", *PRETRAIN, *SMALL, "-run", run, *words]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, env=os.environ
    )


def _lines(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.is_file() else 0
