"""The pretraining loop: it learns, it repeats itself bit for bit, and it stops before it breaks anything."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, multiprocessing, nn
from torch import distributed as dist

from nnssl.data.seeds import generator_at
from nnssl.layers.joint_batch import kept_rows
from nnssl.losses.processes import rank, world
from nnssl.networks.precision import has_fast_bf16
from nnssl.recipe import PretrainRecipe
from nnssl.trainers.checkpoints import load_checkpoint
from nnssl.trainers.learning import clip_gradients
from nnssl.trainers.loggers import RunCard
from nnssl.trainers.pretrain_log import RunLog
from nnssl.trainers.pretraining import CHECKPOINT, Run, Watcher, autocast_dtype, pretrain
from tests.trainers.pretrain_toy import SIDE, ToyConfig, ToyTask

CPU = torch.device("cpu")
RECIPE = PretrainRecipe(
    global_crop=(SIDE,) * 3, local_crop=(SIDE,) * 3, steps=6, batch_size=4, base_lr=0.1, save_every=3, seed=5
)


def crops(first_step: int) -> Iterator[dict[str, Tensor]]:
    """Crops of different brightness; step k depends on k only."""
    while True:
        generator = generator_at(1, first_step)
        level = torch.rand(4, 1, 1, 1, 1, generator=generator)
        yield {"crop": level + 0.1 * torch.rand(4, 1, SIDE, SIDE, SIDE, generator=generator)}
        first_step += 1


def build(**options: int) -> ToyTask:
    torch.manual_seed(0)
    return ToyTask(**options)


class Interrupt(Watcher):
    """Pulls the plug after some steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def saved(self, steps_done: int, state: dict[str, Tensor]) -> None:
        if steps_done >= self.after:
            raise KeyboardInterrupt


class Record(Watcher):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.values: dict[int, dict[str, float]] = {}

    def stepped(self, step: int, values: dict[str, float]) -> None:
        self.values[step] = values


def test_the_loss_falls(tmp_path: Path) -> None:
    record = Record()
    pretrain(build(), crops, recipe=replace(RECIPE, steps=150, save_every=150), run=Run(tmp_path, CPU, watcher=record))
    losses = [values["loss"] for values in record.values.values()]
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_a_run_of_six_steps_equals_three_steps_and_three_continued_ones(
    tmp_path: Path, autocast: torch.dtype | None
) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    pretrain(build(), crops, recipe=RECIPE, run=Run(whole, CPU, autocast))
    with pytest.raises(KeyboardInterrupt):
        pretrain(build(), crops, recipe=RECIPE, run=Run(halves, CPU, autocast, watcher=Interrupt(after=3)))
    assert load_checkpoint(halves / CHECKPOINT)["steps_done"] == 3
    torch.manual_seed(99)
    pretrain(ToyTask(), crops, recipe=RECIPE, run=Run(halves, CPU, autocast, resume=True))
    first, second = load_checkpoint(whole / CHECKPOINT), load_checkpoint(halves / CHECKPOINT)
    assert first["steps_done"] == second["steps_done"] == 6
    for name, tensor in first["task"].items():
        assert torch.equal(tensor, second["task"][name]), name
    for index, state in first["optimiser"]["state"].items():
        for name, tensor in state.items():
            assert torch.equal(tensor, second["optimiser"]["state"][index][name])


def test_another_seed_gives_another_run(tmp_path: Path) -> None:
    tasks = []
    for seed in (0, 1):
        tasks.append(build())
        pretrain(tasks[-1], crops, recipe=replace(RECIPE, seed=seed), run=Run(tmp_path / str(seed), CPU))
    assert not torch.equal(tasks[0].encoder.patch_embed.weight, tasks[1].encoder.patch_embed.weight)


def test_a_finished_run_that_is_continued_does_nothing(tmp_path: Path) -> None:
    pretrain(build(), crops, recipe=RECIPE, run=Run(tmp_path, CPU))
    before = (tmp_path / CHECKPOINT).read_bytes()
    record = Record()
    pretrain(build(), crops, recipe=RECIPE, run=Run(tmp_path, CPU, resume=True, watcher=record))
    assert record.values == {}
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"stopped at step 4: loss=nan.*checkpoint_latest.pt holds the last good state, after 3 steps"
    ):
        pretrain(build(poison=4), crops, recipe=RECIPE, run=Run(tmp_path, CPU))
    state = load_checkpoint(tmp_path / CHECKPOINT)
    assert state["steps_done"] == 3
    assert all(torch.isfinite(tensor).all() for tensor in state["task"].values())


def test_a_collapse_that_lasts_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=20, save_every=2, warmup_fraction=0.1, collapse_steps=5)
    reason = r"stopped at step 11: feature_std=0, below 0.01: all features are alike, for 5 steps; .*after 6 steps"
    with pytest.raises(ValueError, match=reason):
        pretrain(build(dies=7), crops, recipe=recipe, run=Run(tmp_path, CPU))
    assert load_checkpoint(tmp_path / CHECKPOINT)["steps_done"] == 6


def test_a_weak_moment_puts_a_save_off_and_stops_nothing(tmp_path: Path) -> None:
    record, saves = Record(), list[int]()
    record.saved = lambda steps_done, state: saves.append(steps_done)  # type: ignore[method-assign]
    recipe = replace(RECIPE, steps=12, save_every=2, warmup_fraction=0.1, collapse_steps=5)
    pretrain(build(dies=4, lives=8), crops, recipe=recipe, run=Run(tmp_path, CPU, watcher=record))
    assert saves == [2, 4, 10, 12]


@pytest.mark.parametrize("changes", [{"collapse_steps": 0}, {"warmup_fraction": 1.0}, {"collapse_std": 0.0}])
def test_a_collapse_is_overlooked_when_asked_and_during_the_warm_up(tmp_path: Path, changes: dict[str, float]) -> None:
    recipe = replace(RECIPE, **({"collapse_steps": 2} | changes))
    pretrain(build(dies=0), crops, recipe=recipe, run=Run(tmp_path, CPU))
    assert load_checkpoint(tmp_path / CHECKPOINT)["steps_done"] == RECIPE.steps


def test_no_weight_changes_in_the_step_that_is_not_finite(tmp_path: Path) -> None:
    task = build(poison=0)
    before = task.encoder.patch_embed.weight.detach().clone()
    with pytest.raises(ValueError, match="no checkpoint was written yet"):
        pretrain(task, crops, recipe=RECIPE, run=Run(tmp_path, CPU))
    assert torch.equal(task.encoder.patch_embed.weight, before)


def test_a_continued_run_with_other_settings_is_refused(tmp_path: Path) -> None:
    pretrain(build(), crops, recipe=RECIPE, run=Run(tmp_path, CPU))
    with pytest.raises(ValueError, match=r"base_lr=0\.1 became 0\.2.*-run NAME"):
        pretrain(build(), crops, recipe=replace(RECIPE, base_lr=0.2), run=Run(tmp_path, CPU, resume=True))
    with pytest.raises(ValueError, match=r"noise=0\.1 became 0\.3"):
        pretrain(ToyTask(ToyConfig(noise=0.3)), crops, recipe=RECIPE, run=Run(tmp_path, CPU, resume=True))
    pretrain(build(), crops, recipe=replace(RECIPE, save_every=1), run=Run(tmp_path, CPU, resume=True))


def test_gradients_are_clipped_per_part() -> None:
    parts: dict[str, nn.Module] = {"large": nn.Linear(1, 2, bias=False), "small": nn.Linear(1, 2, bias=False)}
    parts["large"].weight.grad = torch.tensor([[30.0], [40.0]])
    parts["small"].weight.grad = torch.tensor([[0.3], [0.4]])
    norms = clip_gradients(parts, 3.0)
    assert {name: float(norm) for name, norm in norms.items()} == pytest.approx({"large": 50.0, "small": 0.5})
    torch.testing.assert_close(parts["large"].weight.grad, torch.tensor([[1.8], [2.4]]))
    torch.testing.assert_close(parts["small"].weight.grad, torch.tensor([[0.3], [0.4]]))


def test_a_norm_of_zero_clips_nothing_and_is_still_measured() -> None:
    part = nn.Linear(1, 2, bias=False)
    part.weight.grad = torch.tensor([[30.0], [40.0]])
    assert float(clip_gradients({"part": part}, 0.0)["part"]) == pytest.approx(50.0)
    torch.testing.assert_close(part.weight.grad, torch.tensor([[30.0], [40.0]]))


def test_the_teacher_moves_after_the_optimiser(tmp_path: Path) -> None:
    task = build()
    start = task.teacher.patch_embed.weight.clone()
    pretrain(task, crops, recipe=replace(RECIPE, steps=1, warmup_fraction=0.0), run=Run(tmp_path, CPU))
    expected = 0.9 * start + 0.1 * task.encoder.patch_embed.weight.detach()
    assert not torch.equal(task.encoder.patch_embed.weight, start)
    torch.testing.assert_close(task.teacher.patch_embed.weight, expected)


def test_everything_is_logged_and_a_continued_log_has_no_gap_and_no_repetition(tmp_path: Path) -> None:
    saves: list[int] = []

    def run_until(stop: int | None, resume: bool) -> None:
        def save(steps_done: int, state: dict[str, Tensor]) -> None:
            saves.append(steps_done)
            if steps_done == stop:
                raise KeyboardInterrupt

        log = RunLog(RunCard(tmp_path), RECIPE, save)
        try:
            pretrain(build(), crops, recipe=RECIPE, run=Run(tmp_path, CPU, resume=resume, watcher=log))
        except KeyboardInterrupt:
            pass
        finally:
            log.close()

    run_until(3, resume=False)
    with (tmp_path / "log.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": 3, "loss": 1.0}) + "\n" + '{"step": 4, "lo')  # what a crash leaves behind
    run_until(None, resume=True)
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(6))
    names = {"loss", "half", "lr", "weight_decay", "gradient/encoder", "gradient/head", "samples_per_s", "seconds"}
    names |= {"tflops", "mfu"}
    assert all(names <= set(record) for record in records)
    assert saves == [3, 6]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_bfloat16_is_chosen_only_where_the_hardware_has_it() -> None:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    expected = torch.bfloat16 if "avx512_bf16" in flags or "amx_bf16" in flags else None
    assert autocast_dtype(CPU) == expected


def test_a_gpu_that_only_emulates_bfloat16_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    has_fast_bf16.cache_clear()
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *words, **more: True)  # PyTorch counts emulation
    try:
        for capability, expected in (((7, 5), None), ((8, 0), torch.bfloat16)):
            monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *words, found=capability: found)
            assert autocast_dtype(torch.device("cuda")) == expected
            has_fast_bf16.cache_clear()
    finally:
        has_fast_bf16.cache_clear()


class Drawing(ToyTask):
    """Logs which samples would keep a residual branch, as the bits of a number: its own, times the processes, because
    the loop logs means over them."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        rows = len(batch["mean"])
        kept = kept_rows(rows, 0.5) * 2.0 ** (rank() * rows + torch.arange(rows))
        return super().forward(batch) | {"kept": world() * kept.sum()}


def _kept_at_each_step(folder: Path, rank: int, processes: int) -> list[float]:
    record = Record()
    stream = ({"crop": next(crops(step))["crop"].chunk(processes)[rank]} for step in range(RECIPE.steps))
    pretrain(Drawing(), lambda first: stream, recipe=RECIPE, run=Run(folder, CPU, watcher=record))
    return [values["kept"] for values in record.values.values()]


def _pretrain_in_one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(_kept_at_each_step(Path(folder) / str(rank), rank, 2), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_stochastic_depth_of_two_processes_is_that_of_the_joint_batch(tmp_path: Path) -> None:
    joint = _kept_at_each_step(tmp_path / "joint", 0, 1)
    multiprocessing.spawn(_pretrain_in_one_of_two, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first == second == joint and len(set(joint)) > 1


def test_the_loop_needs_no_nnunet() -> None:
    import subprocess
    import sys

    code = (
        "import sys\n"
        "for name in ('nnunetv2', 'batchgenerators', 'SimpleITK', 'blosc2', 'matplotlib', 'tqdm', 'safetensors'):\n"
        "    sys.modules[name] = None\n"
        "import nnssl.trainers.pretraining\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
