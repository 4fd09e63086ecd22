"""Runs at scale: micro-batches, requests to stop, damaged checkpoints, several processes (long versions: proof)."""

import logging
import os
import resource
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch
from torch import Tensor

from nnssl.data.volumes import PreparedSamples, StoredFolder, StoredVolumes, batches
from nnssl.trainers.checkpoints import LATEST, PREVIOUS, checksum, load_checkpoint, load_latest
from nnssl.trainers.learning import micro_batches
from nnssl.trainers.pretraining import Run, Watcher, pretrain
from nnssl.trainers.processes import RESTARTS, check_divisible, was_restarted
from tests.trainers.pretrain_processes import Job, final, finish, records, seen, work
from tests.trainers.pretrain_toy import ToyTask
from tests.trainers.test_pretraining import CPU, RECIPE, build, crops

SIX = replace(RECIPE, steps=6, save_every=2)


class At(Watcher):
    """Does something once, after a step."""

    def __init__(self, step: int, action: object) -> None:
        self.step, self.action = step, action

    def stepped(self, step: int, values: dict[str, float]) -> None:
        if step == self.step:
            self.action()  # type: ignore[operator]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_latest(folder)[1]["task"]


def assert_equal(folder: Path, other: Path) -> None:
    first, second = weights(folder), weights(other)
    assert [name for name in first if not torch.equal(first[name], second[name])] == [] and first


def test_a_micro_batch_holds_all_views_of_its_samples() -> None:
    stack = torch.tensor([[0, 0], [0, 1], [0, 2], [0, 3], [1, 0], [1, 1], [1, 2], [1, 3]])  # (view, sample), V = 2
    first, second = micro_batches({"views": stack, "turn": stack[:4, 1]}, samples=4, parts=2)
    assert first["views"].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]] and first["turn"].tolist() == [0, 1]
    assert second["views"].tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]] and second["turn"].tolist() == [2, 3]


def test_four_micro_batches_of_an_additive_loss_are_one_batch(tmp_path: Path) -> None:
    job = Job(tmp_path / "one", settings=("drop_path=0.3",), steps=3, shown=1)
    parts = replace(job, folder=tmp_path / "four", accumulate=4)
    assert work(job) == work(parts) == 3
    one, four = ([record["loss"] for record in records(each.folder)] for each in (job, parts))
    assert four == pytest.approx(one, rel=1e-5)
    assert all(torch.equal(seen(parts)[0][name], value) for name, value in seen(job)[0].items())


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_run_that_is_asked_to_stop_finishes_its_step_and_goes_on_bit_for_bit(tmp_path: Path, name: str) -> None:
    whole, cut, before = tmp_path / "whole", tmp_path / "cut", signal.getsignal(signal.SIGTERM)
    pretrain(build(), crops, recipe=RECIPE, run=Run(whole, CPU))
    ask = At(1, lambda: os.kill(os.getpid(), getattr(signal, name)))
    assert pretrain(build(), crops, recipe=RECIPE, run=Run(cut, CPU, watcher=ask)) == 2
    assert load_latest(cut)[1]["steps_done"] == 2 and signal.getsignal(signal.SIGTERM) == before
    assert pretrain(ToyTask(), crops, recipe=RECIPE, run=Run(cut, CPU, resume=True)) == 6
    assert_equal(whole, cut)


@pytest.mark.parametrize("damage", ["truncated", "changed", "gone"])
def test_a_damaged_latest_checkpoint_falls_back_to_the_previous_one_and_ends_alike(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    pretrain(build(), crops, recipe=SIX, run=Run(whole, CPU))
    pretrain(build(), crops, recipe=SIX, run=Run(cut, CPU))
    latest = cut / LATEST
    content = bytearray(latest.read_bytes())
    if damage == "gone":
        latest.unlink()
    elif damage == "truncated":
        latest.write_bytes(content[: len(content) // 2])
    else:
        value = load_checkpoint(latest)["task"]["student.encoder.patch_embed.weight"].numpy().tobytes()
        content[content.index(value) + 5] ^= 1
        latest.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        pretrain(ToyTask(), crops, recipe=SIX, run=Run(cut, CPU, resume=True))
    assert PREVIOUS in caplog.text and "after 4 steps" in caplog.text
    assert_equal(whole, cut)


def test_the_latest_two_checkpoints_and_the_milestones_stay(tmp_path: Path) -> None:
    (tmp_path / f".{LATEST}.left.pt").write_bytes(b"what a killed process leaves behind")
    recipe = replace(SIX, milestone_every=2)
    pretrain(build(), crops, recipe=recipe, run=Run(tmp_path, CPU, resume=True))
    names = {path.name: load_checkpoint(path)["steps_done"] for path in tmp_path.iterdir()}
    milestones = {f"checkpoint_step0000000{steps}.pt": steps for steps in (2, 4, 6)}
    assert names == {LATEST: 6, PREVIOUS: 4, **milestones}


def test_the_checksum_sees_every_bit_shape_and_name() -> None:
    value = {"a": torch.zeros(4), "b": [1, 2.5, None]}
    changed = [{"a": torch.zeros(4), "b": [1, 2.5, 0]}, {"a": torch.zeros(2, 2), "b": [1, 2.5, None]}]
    changed += [{"c": torch.zeros(4), "b": [1, 2.5, None]}, {"a": torch.tensor([0, 0, 0, 1e-45]), "b": [1, 2.5, None]}]
    assert len({checksum(one) for one in [value, *changed]}) == 5


def test_a_full_disk_stops_the_run_and_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    fill = Watcher()  # told of a save once it is written, so that the disk is full from the second one on
    fill.saved = lambda *told: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # type: ignore[method-assign]
    try:
        with pytest.raises(OSError, match="disk is full"):
            pretrain(build(), crops, recipe=SIX, run=Run(tmp_path, CPU, watcher=fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_latest(tmp_path)[1]["steps_done"] == 2
    assert [path.name for path in tmp_path.iterdir()] == [LATEST]


def test_a_vanished_data_file_stops_the_run_by_name_and_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    volumes = tmp_path / "volumes"
    volumes.mkdir()
    voxels = np.random.default_rng(0).random((1, 12, 12, 12), np.float32)
    for case in "ab":
        blosc2.asarray(voxels, urlpath=str(volumes / f"{case}.b2nd"))
    task = build()
    samples = PreparedSamples(StoredVolumes([StoredFolder("Dataset001_Toy", volumes, ["a", "b"])]), task.prepare, 0)
    stream = lambda first: batches(samples, 4, first_step=first)  # noqa: E731
    vanish = At(2, lambda: (volumes / "b.b2nd").unlink())
    with pytest.raises((ValueError, OSError), match=r"b\.b2nd"):
        pretrain(task, stream, recipe=SIX, run=Run(tmp_path / "run", CPU, watcher=vanish))
    assert load_latest(tmp_path / "run")[1]["steps_done"] == 2


def test_a_run_that_was_cut_before_its_first_checkpoint_starts_anew(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    pretrain(build(), crops, recipe=RECIPE, run=Run(whole, CPU))
    pretrain(build(), crops, recipe=RECIPE, run=Run(cut, CPU, resume=True))
    assert_equal(whole, cut)


@pytest.mark.parametrize("name", ["SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT", RESTARTS])
def test_a_job_that_is_queued_again_knows_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not was_restarted()
    monkeypatch.setenv(name, "0")
    assert not was_restarted()
    monkeypatch.setenv(name, "1")
    assert was_restarted()


def test_a_batch_that_does_not_split_evenly_is_refused() -> None:
    check_divisible(8, 4)
    with pytest.raises(ValueError, match=r"batch_size=6 .* -accumulate 4: it must be a multiple of 4; take .*=8"):
        check_divisible(6, 4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    job = Job(tmp_path_factory.mktemp("alone"), settings=("drop_path=0.3",), steps=4, save_every=2, shown=2)
    finish(job)
    yield job


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_see_and_learn_what_one_does(tmp_path: Path, alone: Job, parallel: str) -> None:
    pair = replace(alone, folder=tmp_path, processes=2, parallel=parallel)
    one, two = ([record["loss"] for record in records(finish(job))] for job in (alone, pair))
    assert two == pytest.approx(one, rel=1e-5) and len(one) == 4
    for found, expected in zip(seen(pair), seen(alone), strict=True):
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    found, expected = final(tmp_path), final(alone.folder)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_checkpoint_of_two_sharded_processes_is_continued_by_one(tmp_path: Path, alone: Job) -> None:
    pair = replace(alone, folder=tmp_path, processes=2, parallel="fsdp")
    finish(pair)
    (tmp_path / LATEST).unlink()  # back to step 2
    finish(replace(pair, processes=1))
    for name, value in final(alone.folder).items():
        torch.testing.assert_close(final(tmp_path)[name], value, rtol=1e-4, atol=1e-6)
