"""What a 3DINO sample of `crops.py` is made of, and every change of intensity beside MONAI's: milliseconds on one core.

Medians of rounds in which all parts, or both sides, take turns. The volumes of the second table change from call to
call, so that they come from memory and not from a cache, as views do; parameters are the middle of 3DINO's ranges. Ours
works in place, MONAI's makes new volumes.

    OMP_NUM_THREADS=1 python benchmarks/crop_parts.py --work /scratch/crops
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from crops import BATCH, GLOBAL, LOCAL, SHAPES, SMALL_HEADS, made
from monai import transforms as monai
from monai.data import set_track_meta
from torch import Tensor

from nnssl.data.collation import collate
from nnssl.data.freed_memory import keep_freed_memory
from nnssl.data.seeds import generator_at
from nnssl.data.volumes import Prepare, StoredFolder, StoredVolumes
from nnssl.encoders import encoder_spec
from nnssl.pretext import build_task
from nnssl.recipe import PretrainRecipe
from nnssl.transforms import intensity
from nnssl.transforms.blur import gaussian_smooth

VOLUMES = 8  # of 3.5 MB at 96^3
SMOOTH, SHARPEN, SHARPEN_AGAIN, ALPHA, GAMMA, NOISE, GIBBS = 0.875, 0.75, 0.625, 20.0, 1.25, 0.0005, 0.5
POINTS = torch.tensor([[0.0, 0.08, 0.2, 0.35, 0.4, 0.6, 0.65, 0.8, 0.85, 1.0]])
Change = Callable[[Tensor], object]  # of (1, X, Y, Z)


def main() -> None:
    """Print two tables in Markdown."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--work", type=Path, required=True, help="folder of the volumes, as for crops.py")
    words.add_argument("--rounds", type=int, default=60)
    arguments = words.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    set_track_meta(False)
    keep_freed_memory()
    print("| ms per sample | reading and geometry | collating | intensity |\n|---|---|---|---|")
    for name in SHAPES:
        parts = medians(sample_parts(name, arguments.work, arguments.rounds))
        print(f"| {name} | {' | '.join(f'{part / BATCH:.1f}' for part in parts)} |")
    print("\n| ms | ours at 96^3 | MONAI | ours at 48^3 | MONAI |\n|---|---|---|---|---|")
    for name, (ours, theirs) in changes().items():
        found = [medians(turns(size, (ours, theirs), arguments.rounds)) for size in (GLOBAL, LOCAL)]
        print(f"| {name} | {' | '.join(f'{value:.2f}' for pair in found for value in pair)} |")


def sample_parts(name: str, work: Path, rounds: int) -> Iterator[list[float]]:
    """Seconds of reading and geometry, of collating and of intensity of one batch after the other."""
    _, folder = made(name, work)
    volumes = StoredVolumes([StoredFolder(name, folder, [name])])
    spec = encoder_spec("vit_small_16", GLOBAL)
    task = build_task("threedino", spec, PretrainRecipe(GLOBAL, LOCAL), SMALL_HEADS)
    prepare: Prepare = task.prepare
    for number in range(rounds):
        times = [time.process_time()]
        views = [prepare(volumes.volume(0), generator_at(0, 1, number * BATCH + k)) for k in range(BATCH)]
        times.append(time.process_time())
        batch = collate(views)
        times.append(time.process_time())
        task.augment(batch, generator_at(0, 2, number))
        times.append(time.process_time())
        yield [end - begin for begin, end in pairwise(times)]


def changes() -> dict[str, tuple[Change, Change]]:
    """Ours and MONAI's."""
    one = torch.ones(1)
    three, seed = one.expand(1, 3), torch.zeros(1, dtype=torch.int64)
    sharpen = (SHARPEN * three, SHARPEN_AGAIN * three)
    return {
        "smoothing": (
            lambda v: gaussian_smooth(v[None], SMOOTH * three, out=v[None]),
            monai.GaussianSmooth(SMOOTH),
        ),
        "sharpening": (
            lambda v: intensity.gaussian_sharpen(v[None], sharpen, ALPHA * one, out=v[None]),
            monai.GaussianSharpen(SHARPEN, SHARPEN_AGAIN, ALPHA),
        ),
        "contrast": (
            lambda v: intensity.gamma_contrast(v[None], GAMMA * one, out=v[None]),
            monai.AdjustContrast(GAMMA),
        ),
        "noise": (
            lambda v: intensity.gaussian_noise(v[None], NOISE * one, seed, out=v[None]),
            monai.RandGaussianNoise(prob=1.0, std=NOISE),
        ),
        "histogram shift": (
            lambda v: intensity.histogram_shift(v[None], POINTS, out=v[None]),
            monai.RandHistogramShift(prob=1.0, num_control_points=10),
        ),
        "Gibbs noise": (
            lambda v: intensity.gibbs_noise(v[None], GIBBS * one, out=v[None]),
            monai.GibbsNoise(GIBBS),
        ),
    }


def turns(size: tuple[int, int, int], sides: tuple[Change, ...], rounds: int) -> Iterator[list[float]]:
    """Seconds of each side on a volume that the caches have forgotten."""
    volumes = torch.rand(VOLUMES, 1, *size, generator=torch.Generator().manual_seed(0))
    for number in range(rounds):
        if number % VOLUMES == 0:
            copies = [volumes.clone() for _ in sides]
        seconds = []
        for side, own in zip(sides, copies, strict=True):
            begun = time.process_time()
            side(own[number % VOLUMES])
            seconds.append(time.process_time() - begun)
        yield seconds


def medians(rounds: Iterator[list[float]]) -> list[float]:
    """Of every part, in ms, without the first rounds."""
    return [1e3 * median(part[3:]) for part in zip(*rounds, strict=True)]


if __name__ == "__main__":
    main()
