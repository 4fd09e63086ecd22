"""Looking at a running pretraining: when, with what result, and that the run stays the same bit for bit."""

import copy
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, multiprocessing
from torch import distributed as dist

from nnssl.encoders import build_encoder
from nnssl.encoders.base import Encoder
from nnssl.evaluation.frozen_scores import frozen_scores
from nnssl.evaluation.labelled import LabelledCrop, LabelledSet
from nnssl.pretext.base import PretextTask
from nnssl.recipe import PretrainRecipe
from nnssl.trainers.checkpoints import load_checkpoint
from nnssl.trainers.following import Follower, checked_every, picture_look, pictured_map, probe_look
from nnssl.trainers.loggers import RunCard
from nnssl.trainers.pretrain_log import AtSave, RunLog
from nnssl.trainers.pretraining import CHECKPOINT, Run, pretrain
from tests.pretext.toys import RECIPE as TOY
from tests.pretext.toys import toy_task
from tests.trainers.pretrain_processes import Job, final, shares
from tests.trainers.pretrain_toy import SIDE
from tests.trainers.test_pretraining import CPU, RECIPE, build, crops

LONG = replace(RECIPE, steps=8, save_every=4)


def labelled() -> LabelledSet:
    generator = torch.Generator().manual_seed(4)
    scans = tuple(
        LabelledCrop(torch.rand(1, 16, 16, 16, generator=generator), torch.randint(3, (16,) * 3, generator=generator))
        for _ in range(4)
    )
    return LabelledSet(("background", "a", "b"), scans[::2], scans[1::2])


def looking(task: PretextTask, folder: Path) -> AtSave:
    """Probe and picture at every save, as the command does it: from the saved state, with a private copy."""
    encoder = copy.deepcopy(task.result())
    prefix = next(name for name, module in task.named_modules() if module is task.result()) + "."
    volume = torch.rand(1, *task.spec.native_crop, generator=torch.Generator().manual_seed(0))
    looks = {"probe": probe_look(labelled()), "picture": picture_look(folder, [volume], (1, 1, 1))}
    follower = Follower(4, LONG.steps, device=CPU, looks=looks)

    def at_save(steps_done: int, state: dict[str, Tensor]) -> dict[str, float]:
        own = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
        encoder.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in own.items()})
        return follower(steps_done, encoder)

    return at_save


@pytest.mark.parametrize("autocast", [torch.bfloat16, pytest.param(None, marks=pytest.mark.slow)])
def test_a_run_that_is_looked_at_ends_with_the_same_bits(tmp_path: Path, autocast: torch.dtype | None) -> None:
    states = []
    for name in ("plain", "watched"):
        task, folder = build(), tmp_path / name
        folder.mkdir()
        at_save: AtSave = looking(task, folder) if name == "watched" else lambda steps_done, state: None
        log = RunLog(RunCard(folder), LONG, at_save, loggers=())
        pretrain(task, crops, recipe=LONG, run=Run(folder, CPU, autocast, watcher=log))
        log.close()
        states.append(load_checkpoint(folder / CHECKPOINT))
    plain, watched = states
    assert all(torch.equal(value, watched["task"][name]) for name, value in plain["task"].items())
    for place, values in plain["optimiser"]["state"].items():
        assert all(torch.equal(value, watched["optimiser"]["state"][place][name]) for name, value in values.items())
    records = [json.loads(line) for line in (tmp_path / "watched" / "log.jsonl").read_text().splitlines()]
    looks = [record for record in records if "probe/knn" in record]
    assert [record["step"] for record in looks] == [3, 7]
    assert all(0 <= record["probe/linear"] <= 1 for record in looks)
    assert len(list((tmp_path / "watched").glob("step*.png"))) == 2
    assert [record["loss"] for record in records if "loss" in record] == [
        json.loads(line)["loss"] for line in (tmp_path / "plain" / "log.jsonl").read_text().splitlines()
    ]


def _in_one_of_two(rank: int, folder: str, parallel: str, watched: bool) -> None:
    torch.set_num_threads(1)
    place = Path(folder)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    recipe = replace(TOY, steps=6, batch_size=4, save_every=4, warmup_fraction=0.1)
    task, job = toy_task("ibot", recipe=recipe), Job(place, processes=2)
    run = Run(place, CPU, torch.bfloat16, parallel=parallel)
    if rank == 0 and watched:
        run = replace(run, watcher=RunLog(RunCard(place), recipe, looking(task, place), loggers=()))
    pretrain(task, lambda first: shares(task, job, first), recipe=recipe, run=run)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_run_of_two_processes_that_is_looked_at_ends_with_the_same_bits(tmp_path: Path, parallel: str) -> None:
    for name in ("plain", "watched"):
        (tmp_path / name).mkdir()
        multiprocessing.spawn(_in_one_of_two, args=(str(tmp_path / name), parallel, name == "watched"), nprocs=2)
    plain, watched = final(tmp_path / "plain"), final(tmp_path / "watched")
    assert [name for name, value in plain.items() if not torch.equal(value, watched[name])] == []
    assert "probe/knn" in (tmp_path / "watched" / "log.jsonl").read_text()


def test_looks_come_every_so_many_steps_and_at_the_end() -> None:
    seen: list[int] = []

    def look(encoder: Encoder, steps_done: int) -> dict[str, float]:
        seen.append(steps_done)
        return {"probe/knn": 0.5}

    encoder = build().result()
    for every, expected in ((4, [4, 8, 10]), (0, []), (20, [10])):
        seen.clear()
        follower = Follower(every, 10, device=CPU, looks={"the probe": look})
        found = [follower(steps_done, encoder) for steps_done in range(2, 11, 2)]
        assert seen == expected and len([one for one in found if one]) == len(expected)


def test_a_look_that_fails_warns_and_the_others_are_taken(caplog: pytest.LogCaptureFixture) -> None:
    def fail(encoder: Encoder, steps_done: int) -> dict[str, float]:
        raise RuntimeError("out of memory\nmore lines")

    looks = {"the probe": fail, "the picture": lambda encoder, steps_done: {"a": 1.0}}
    with caplog.at_level(logging.WARNING):
        assert Follower(2, 10, device=CPU, looks=looks)(4, build().result()) == {"a": 1.0}
    assert caplog.messages == ["the probe after 4 steps failed (RuntimeError: out of memory); the run goes on"]


def test_the_default_is_about_twenty_looks_at_saves() -> None:
    def every(steps: int, save_every: int = 500) -> int:
        return checked_every(None, PretrainRecipe(steps=steps, save_every=save_every))

    assert (every(125_000), every(5616), every(100), every(1000, 10)) == (6000, 500, 500, 50)


@pytest.mark.parametrize("given", [-500, 750])
def test_looks_between_saves_are_refused(given: int) -> None:
    with pytest.raises(ValueError, match=f"-probe_every {given}: .* a multiple of save_every=500"):
        checked_every(given, PretrainRecipe())


def test_of_a_pyramid_the_coarsest_map_of_at_most_sixteen_voxels_is_pictured() -> None:
    swin = build_encoder("swin_tiny").eval()
    found, maps = pictured_map(swin, torch.rand(1, 32, 32, 32)), swin.spec.channels
    assert found.shape == (maps[swin.spec.strides.index(16)], 2, 2, 2)


def test_scores_follow_the_encoder_that_was_saved() -> None:
    task, other = build(), build()
    with torch.no_grad():
        for parameter in other.teacher.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    scores = [frozen_scores(one.result(), labelled()) for one in (task, other, task)]
    assert scores[0] == scores[2] != scores[1]
    assert SIDE % task.result().spec.crop_multiple == 0
