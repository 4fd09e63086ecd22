"""Many ranks read one run's volumes on one machine: samples per second, fairness, bytes read, nothing lost or repeated.

Every rank is a stream of its own, as `nnssl_pretrain` opens it (its share of each joint batch, no data workers, 3DINO's
views without intensity, which GPUs do). A few processes serve all ranks in turn, so that 64 ranks need the memory of a
few. A sample's seconds are CPU time of the process that read it; bytes are what the kernel counted for read calls.

    python benchmarks/loader_ranks.py $nnUNet_preprocessed/Dataset201_UnlabelledCT/nnsslPlans_vit_small_16_pretrain ...
"""

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from nnssl.data.collation import Sample
from nnssl.data.lazy_volume import LazyVolume
from nnssl.data.volumes import PreparedSamples, StoredFolder, StoredVolumes, batches, stored_cases
from nnssl.encoders import encoder_spec
from nnssl.pretext import build_task
from nnssl.recipe import PretrainRecipe

GLOBAL, LOCAL = (96, 96, 96), (48, 48, 48)
SMALL_HEADS = ["prototypes=64", "hidden=32", "bottleneck=16"]  # heads are not measured


class Read(NamedTuple):
    """One sample that a rank read."""

    step: int
    rank: int
    image: tuple[Path, int]  # file and channel
    seconds: float  # CPU time
    read: int  # bytes


def main() -> None:
    """Read with all ranks, check the epochs, print a table in Markdown."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("folders", nargs="+", type=Path, help="of stored volumes (CASE.b2nd)")
    words.add_argument("--ranks", type=int, default=64)
    words.add_argument("--processes", type=int, default=2, help="that serve the ranks; default 2")
    words.add_argument("--samples", type=int, help="of all ranks; default one epoch")
    words.add_argument(
        "--views", action=argparse.BooleanOptionalAction, default=True, help="crop 3DINO's views, or not"
    )
    arguments = words.parse_args()
    started = time.perf_counter()
    volumes = StoredVolumes(
        [StoredFolder(folder.parent.name, folder, stored_cases(folder)) for folder in arguments.folders]
    )
    opened = time.perf_counter() - started
    steps = -(-(arguments.samples or len(volumes)) // arguments.ranks)
    serve = partial(served, volumes, arguments.ranks, steps, arguments.views)
    shares = [range(k, arguments.ranks, arguments.processes) for k in range(arguments.processes)]
    started = time.perf_counter()
    with get_context("fork").Pool(arguments.processes) as pool:
        read = [sample for part in pool.map(serve, shares) for sample in part]
    seconds = time.perf_counter() - started
    print(f"{len(volumes)} images opened in {opened:.2f} s, {1e3 * opened / len(volumes):.2f} ms each")
    print(table(read, seconds, arguments.ranks, arguments.processes))
    print(complete(read, len(volumes)))


def served(volumes: StoredVolumes, ranks: int, steps: int, views: bool, own: Sequence[int]) -> list[Read]:
    """What the ranks `own` read, one batch of each in turn; a rank's share of a batch is one sample."""
    torch.set_num_threads(1)
    task = build_task("threedino", encoder_spec("vit_small_16", GLOBAL), PretrainRecipe(GLOBAL, LOCAL), SMALL_HEADS)
    cut = task.prepare if views else first_block
    seen: list[LazyVolume] = []

    def prepare(volume: LazyVolume, generator: torch.Generator) -> Sample:
        seen.append(volume)
        return cut(volume, generator)

    samples = PreparedSamples(volumes, prepare, seed=0)
    streams = {rank: batches(samples, ranks, share=(rank, ranks)) for rank in own}
    read = []
    for step in range(steps):
        for rank in own:
            begun, before = time.process_time(), bytes_read()
            next(streams[rank])
            seconds, volume = time.process_time() - begun, seen.pop()
            read.append(Read(step, rank, (volume.path, volume.channel), seconds, bytes_read() - before))
    return read


def first_block(volume: LazyVolume, generator: torch.Generator) -> dict[str, Tensor]:
    """The least that can be read of a volume, for runs that only check who reads what."""
    return {"block": volume[:, :1, :1, :1]}


def bytes_read() -> int:
    """Of all read calls of this process, from disk or page cache (Linux)."""
    return int(Path("/proc/self/io").read_text(encoding="ascii").split()[1])


def table(read: list[Read], seconds: float, ranks: int, processes: int) -> str:
    """Totals, and how alike the ranks are."""
    cpu = [median(sample.seconds for sample in read if sample.rank == rank) for rank in range(ranks)]
    counts = Counter(sample.rank for sample in read)
    rows = {
        "samples": f"{len(read)}",
        "samples per rank, fewest to most": f"{min(counts.values())} to {max(counts.values())}",
        f"samples/s, {processes} processes": f"{len(read) / seconds:.1f}",
        "samples/s and core (CPU time)": f"{len(read) / sum(sample.seconds for sample in read):.1f}",
        "median ms per sample, fastest to slowest rank": f"{1e3 * min(cpu):.1f} to {1e3 * max(cpu):.1f}",
        "MB read per sample": f"{sum(sample.read for sample in read) / len(read) / 1e6:.2f}",
    }
    return "\n".join(["| what | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def complete(read: list[Read], images: int) -> str:
    """Whether every full epoch of the joint batches shows every image once."""
    shown = [sample.image for sample in sorted(read)]
    epochs = len(shown) // images
    wrong = [k for k in range(epochs) if len(set(shown[k * images : (k + 1) * images])) != images]
    return f"{epochs} full epochs of {images} images, {len(wrong)} of them with an image lost or repeated"


if __name__ == "__main__":
    main()
