"""Multi-crop samples of 3DINO (2 x 96^3 + 8 x 48^3, geometry and intensity) per second and core, ours against MONAI's.

Both sides start from a file: ours from a volume that is capped at what crops can show and stored in float16, the other
from the float32 cache of the whole volume that the published code keeps (`torch.save`; MONAI's CacheNTransDataset). The
MONAI chain is rebuilt from the paper and its configuration; it augments view by view, ours batch by batch on the
training device, here the CPU. MONAI's bookkeeping (`set_track_meta`) is off, which favours it by a twentieth. Each side
lives in a process of its own, because ours keeps freed memory; they take turns on one core in one run. Seconds are CPU
time of one thread, ratios are medians of neighbouring rounds. "From memory" gives both the same capped float32 volume
and leaves the reading out.

    OMP_NUM_THREADS=1 python benchmarks/crops.py --work /scratch/crops
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from monai import transforms
from monai.data import set_track_meta
from torch import Tensor
from torch.nn import functional as F

from nnssl.data.case_store import StoredCase, write_case
from nnssl.data.collation import collate
from nnssl.data.freed_memory import keep_freed_memory
from nnssl.data.resampling import resample_image
from nnssl.data.seeds import generator_at
from nnssl.data.volumes import PreparedSamples, StoredFolder, StoredVolumes, batches
from nnssl.encoders import encoder_spec
from nnssl.planners.storage import stored_limit, threedino_views
from nnssl.pretext import build_task
from nnssl.pretext.base import PretextTask
from nnssl.recipe import PretrainRecipe
from nnssl.transforms.views import CropRule, random_box

SHAPES = {"brain": (192, 224, 192), "ct": (512, 512, 400)}
GLOBAL, LOCAL, BATCH, DEPTH_AXIS = (96, 96, 96), (48, 48, 48), 4, 2
SMALL_HEADS = ["prototypes=64", "hidden=32", "bottleneck=16"]  # heads are not measured
Sampler = Callable[[int], object]  # number of a round -> its samples
RUNNING: list[Sampler] = []  # of this process


def main() -> None:
    """Make the volumes, measure in turns, print two tables in Markdown."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--work", type=Path, required=True, help="folder for 0.6 GiB of volumes")
    words.add_argument("--rounds", type=int, default=40, help="of 4 samples each; default 40")
    words.add_argument("--volumes", nargs="+", choices=SHAPES, default=list(SHAPES))
    arguments = words.parse_args()
    sizes, speeds = [], []
    for name in arguments.volumes:
        cache, folder = made(name, arguments.work)
        stored = folder / f"{name}.b2nd"
        parts = f"{cache.stat().st_size / 1e6:.1f} | {stored.stat().st_size / 1e6:.2f}"
        sizes.append(f"| {name} | {parts} | {cache.stat().st_size / stored.stat().st_size:.1f} |")
        for source in ("file", "memory"):
            found = compared([Side(who, name, source, arguments.work) for who in ("ours", "MONAI")], arguments.rounds)
            speeds.append(f"| {name}, from {source} | {' | '.join(found)} |")
    print("| volume | float32 cache, MB | stored, MB | times smaller |\n|---|---|---|---|", *sizes, sep="\n")
    print("\n| volume | ours, samples/s | MONAI, samples/s | ratio |\n|---|---|---|---|", *speeds, sep="\n")


class Side(NamedTuple):
    """What a process samples."""

    who: str  # "ours" or "MONAI"
    volume: str
    source: str  # "file" or "memory"
    work: Path

    def sampler(self) -> Sampler:
        """Number of a round -> its samples."""
        cache, folder = made(self.volume, self.work)
        volumes = StoredVolumes([StoredFolder(self.volume, folder, [self.volume])])
        memory = volumes.volume(0)[:]
        if self.who == "MONAI":
            return monai_chain((lambda: torch.load(cache)) if self.source == "file" else (lambda: memory * 2 - 1))
        spec = encoder_spec("vit_small_16", GLOBAL)
        task = build_task("threedino", spec, PretrainRecipe(GLOBAL, LOCAL), SMALL_HEADS)
        return ours_from_file(volumes, task) if self.source == "file" else ours_from_memory(memory, task)


def made(name: str, work: Path) -> tuple[Path, Path]:
    """The float32 cache file and the folder of the stored case of a synthetic scan."""
    cache, folder = work / f"{name}.pt", work / name
    if not (cache.is_file() and (folder / f"{name}.b2nd").is_file()):
        folder.mkdir(parents=True, exist_ok=True)
        scan = synthetic(SHAPES[name], np.random.default_rng(len(name)))
        torch.save(scan[None] * 2 - 1, cache)
        shape = stored_limit(threedino_views(GLOBAL, LOCAL), DEPTH_AXIS).shape(SHAPES[name])
        image = resample_image(scan.numpy(), shape, antialias=True).astype(np.float16)[None]
        write_case(folder, name, StoredCase(image, np.zeros(image.shape, np.int16), {}), key="")
    return cache, folder


def synthetic(shape: tuple[int, int, int], random: np.random.Generator) -> Tensor:
    """Smooth tissue with noise in an ellipsoid that touches all sides; outside it is 0. In [0, 1]."""
    coarse = torch.from_numpy(random.random((1, 1, *(side // 12 for side in shape)), dtype=np.float32))
    tissue = F.interpolate(coarse, size=shape, mode="trilinear")[0, 0]
    tissue += 0.03 * torch.from_numpy(random.standard_normal(shape, dtype=np.float32))
    x, y, z = (torch.linspace(-1, 1, side).square() for side in shape)
    return tissue.clamp_(0.02, 1).mul_(x[:, None, None] + y[:, None] + z <= 1)


def ours_from_file(volumes: StoredVolumes, task: PretextTask) -> Sampler:
    """Batches as `nnssl_pretrain` prepares and augments them, in one process."""
    stream = batches(PreparedSamples(volumes, task.prepare, seed=0), BATCH)
    return lambda number: task.augment(next(stream), generator_at(0, 2, number))


def ours_from_memory(volume: Tensor, task: PretextTask) -> Sampler:
    """The same without reading."""
    keep_freed_memory()

    def batch(number: int) -> object:
        views = [task.prepare(volume, generator_at(0, 1, number * BATCH + k)) for k in range(BATCH)]
        return task.augment(collate(views), generator_at(0, 2, number))

    return batch


def monai_chain(read: Callable[[], Tensor]) -> Sampler:
    """The published augmentation with MONAI's transforms, view by view, and its collation to float16; without masks."""
    one_of_three = [
        transforms.RandAdjustContrast(prob=0.8, gamma=(0.5, 2.0)),
        transforms.RandGaussianNoise(prob=0.8, std=0.002),
        transforms.RandHistogramShift(prob=0.8, num_control_points=10),
    ]
    blurred = [transforms.RandGaussianSmooth(prob=1.0), transforms.RandGaussianSharpen(prob=1.0)]
    rarely = [transforms.RandGaussianSmooth(prob=0.1), transforms.RandGaussianSharpen(prob=0.1)]
    always = [*orientation(), transforms.OneOf(one_of_three)]
    first = transforms.Compose([*always, transforms.OneOf(blurred)])
    second = transforms.Compose([*always, transforms.OneOf(rarely), transforms.RandGibbsNoise(prob=0.2)])
    local = transforms.Compose([*always, transforms.RandGaussianSmooth(prob=0.5)])
    wide, narrow = CropRule((0.48, 1.0), (0.5, 1.0)), CropRule((0.16, 0.48), (0.2, 0.5))
    families = [(wide, GLOBAL, first), (wide, GLOBAL, second), *[(narrow, LOCAL, local)] * 8]
    resize = {size: transforms.Resize(size, mode="trilinear") for size in (GLOBAL, LOCAL)}

    def batch(number: int) -> object:
        generator = generator_at(0, 1, number)
        views: dict[tuple[int, ...], list[Tensor]] = {GLOBAL: [], LOCAL: []}
        for _ in range(BATCH):
            volume = read()
            for rule, size, chain in families:
                shape = volume.shape[1], volume.shape[2], volume.shape[3]
                box = random_box(shape, rule, size=size, depth_axis=DEPTH_AXIS, generator=generator)
                views[size].append(chain(resize[size](volume[(slice(None), *box)])))
        return [torch.stack(crops).half() for crops in views.values()]

    return batch


def orientation() -> list[transforms.Transform]:
    """Flips and turns, which all views share."""
    flips = [transforms.RandFlip(prob=0.3, spatial_axis=axis) for axis in range(3)]
    planes = ((0, 1), (1, 2), (0, 2))
    return flips + [transforms.RandRotate90(prob=0.3, max_k=3, spatial_axes=plane) for plane in planes]


def compared(sides: Sequence[Side], rounds: int) -> list[str]:
    """Samples per second of both sides, and the median ratio of neighbouring rounds."""
    with ExitStack() as running:
        processes = [
            running.enter_context(ProcessPoolExecutor(1, get_context("spawn"), initializer=begin, initargs=(side,)))
            for side in sides
        ]
        seconds = [[process.submit(spent, abs(n)).result() for process in processes] for n in range(-1, rounds)][1:]
    fast, slow = (BATCH / median(side) for side in zip(*seconds, strict=True))
    return [f"{fast:.1f}", f"{slow:.1f}", f"{median(their / our for our, their in seconds):.2f}"]


def begin(side: Side) -> None:
    """In the process of a side: both take turns on one core."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    set_track_meta(False)
    RUNNING.append(side.sampler())


def spent(number: int) -> float:
    """CPU seconds of one batch."""
    begun = time.process_time()
    RUNNING[0](number)
    return time.process_time() - begun


if __name__ == "__main__":
    main()
