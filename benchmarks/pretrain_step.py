"""One pretraining step of 3DINO, data included: ours against the same arithmetic written plainly.

ViT-S/16, 2 x 96^3 + 8 x 48^3, batch 2, two heads of 65,536 prototypes, bf16 autocast, AdamW; without stochastic depth,
which draws other samples where views run apart. Ours (own_step.py): `nnssl_pretrain`'s own stream and `Learner`. The
other side: plain_threedino.py. Both read the same stored volumes, in the training process, and start from the same
weights. Each side lives in its own process, for its own peak memory; they take turns, one step at a time. For the
losses two fresh processes are fed the same augmented batches.

    OMP_NUM_THREADS=1 python benchmarks/pretrain_step.py --work /scratch/pretrain_step [--rounds 10]
"""

import argparse
import importlib
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from own_step import PARTS, RECIPE, same_batch

SIDES = ("own_step", "plain_threedino")  # modules, each imported by its own process alone
BRAIN, CASES, DEPTH_AXIS = (192, 224, 192), 4, 2
WARM_UP = 2  # steps before the measured ones; the prototypes rest in the first
FASTER, MEMORY, CLOSE = 1.5, 0.7, 1e-3  # what is required


class Step(NamedTuple):
    """What a side tells of one step."""

    loss: float
    parts: dict[str, float]  # CPU seconds
    wall: float

    @property
    def cpu(self) -> float:
        """CPU seconds of all parts."""
        return sum(self.parts.values())


Found = tuple[list[Step], dict[str, float]]  # steps, memory in GiB


def main() -> None:
    """Make the volumes, measure in turns, compare losses, print tables in Markdown."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--work", type=Path, required=True, help="folder for 14 MB of volumes")
    words.add_argument("--rounds", type=int, default=10, help="measured steps of each side; default 10")
    words.add_argument("--losses", type=int, default=20, help="steps of the comparison of losses; 0: none; default 20")
    arguments = words.parse_args()
    write_volumes(arguments.work)
    if arguments.rounds:
        ours, plain = take_turns(arguments.work, WARM_UP + arguments.rounds, fed=False)
        print(speed_table(ours[0][WARM_UP:], plain[0][WARM_UP:]))
        print(memory_table(ours[1], plain[1]), flush=True)
    if arguments.losses:
        print(losses_line(*take_turns(arguments.work, arguments.losses, fed=True)))


def write_volumes(work: Path) -> None:
    """Stored cases of synthetic brains, as `nnssl_plan_and_preprocess` stores them."""
    from crops import synthetic  # here, because the processes of both sides import this file

    from nnssl.data.case_store import StoredCase, write_case
    from nnssl.data.resampling import resample_image
    from nnssl.planners.storage import stored_limit, threedino_views

    work.mkdir(parents=True, exist_ok=True)
    shape = stored_limit(threedino_views(RECIPE.global_crop, RECIPE.local_crop), DEPTH_AXIS).shape(BRAIN)
    for name in (f"brain{case}" for case in range(CASES)):
        if not (work / f"{name}.b2nd").is_file():
            scan = synthetic(BRAIN, np.random.default_rng(int(name[-1]))).numpy()
            image = resample_image(scan, shape, antialias=True).astype(np.float16)[None]
            case = StoredCase(image, np.zeros(image.shape, np.int16), {})
            write_case(work, name, case, key="")


def take_turns(work: Path, steps: int, fed: bool) -> list[Found]:
    """Steps and memory of both sides, each in a process of its own, one step at a time."""
    context, pipes, processes = multiprocessing.get_context("spawn"), [], []
    for side in SIDES:
        mine, theirs = context.Pipe()
        processes.append(context.Process(target=worker, args=(side, work, fed, theirs), daemon=True))
        processes[-1].start()
        theirs.close()
        mine.recv()
        pipes.append(mine)
    told: list[list[Step]] = [[] for _ in SIDES]
    for number in range(steps):
        for pipe, own in zip(pipes, told, strict=True):
            pipe.send(number)
            own.append(pipe.recv())
    memory = [(pipe.send(None), pipe.recv())[1] for pipe in pipes]
    for process in processes:
        process.join()
    return list(zip(told, memory, strict=True))


def worker(side: str, work: Path, fed: bool, pipe: Connection) -> None:
    """One step for each number that arrives; None: report memory and end."""
    module = importlib.import_module(side)
    memory = {"imports": peak_gib()}
    learner = module.Side(work)
    pipe.send("ready")
    while (number := pipe.recv()) is not None:
        batch = same_batch(work, number) if fed else None
        learner.clock.taken()
        begun = time.perf_counter()
        loss = learner.step(number) if batch is None else learner.fed(number, batch)
        pipe.send(Step(loss, learner.clock.taken(), time.perf_counter() - begun))
    pipe.send(memory | {"peak": peak_gib()})


def peak_gib() -> float:
    """Peak resident memory of this process so far; `getrusage` would count that of its parent too."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def speed_table(ours: list[Step], plain: list[Step]) -> str:
    """Medians of CPU time by part and of the whole step, and the medians of the ratios of neighbouring steps."""
    rows = ["| | ours, ms | plain, ms | ratio |", "|---|---|---|---|"]
    wanted: dict[str, Callable[[Step], float]] = {part: lambda step, part=part: step.parts[part] for part in PARTS}
    wanted |= {"CPU time of a step": lambda step: step.cpu, "seconds of a step": lambda step: step.wall}
    for name, seconds in wanted.items():
        fast, slow = (1000 * median(map(seconds, side)) for side in (ours, plain))
        ratio = median(seconds(other) / max(seconds(own), 1e-4) for own, other in zip(ours, plain, strict=True))
        required = f" (required: {FASTER})" if name not in PARTS else ""
        rows.append(f"| {name} | {fast:.0f} | {slow:.0f} | {ratio:.2f}{required} |")
    return f"{torch.get_num_threads()} thread(s), {len(ours)} steps\n\n" + "\n".join(rows)


def memory_table(ours: dict[str, float], plain: dict[str, float]) -> str:
    """Peak resident memory of the processes, and above their imports."""
    above = [{"above the imports": side["peak"] - side["imports"]} for side in (ours, plain)]
    rows = ["\n| memory, GiB | ours | plain | ratio |", "|---|---|---|---|"]
    for name in ("imports", "peak", "above the imports"):
        own, other = (ours | above[0])[name], (plain | above[1])[name]
        required = f" (required: at most {MEMORY})" if name == "peak" else ""
        rows.append(f"| {name} | {own:.2f} | {other:.2f} | {own / other:.2f}{required} |")
    return "\n".join(rows)


def losses_line(ours: Found, plain: Found) -> str:
    """How far the losses of the same batches are apart."""
    own, other = (np.array([step.loss for step in side[0]]) for side in (ours, plain))
    return (
        f"\nThe same {len(own)} batches: loss {own[0]:.4f} to {own[-1]:.4f}, plain {other[0]:.4f} to {other[-1]:.4f}; "
        f"largest relative difference {np.abs(own / other - 1).max():.1e} (required: at most {CLOSE})"
    )


if __name__ == "__main__":
    main()
