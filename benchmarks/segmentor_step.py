"""Forward + backward of our segmentors against the published arithmetic of 3DINO and against MONAI's SwinUNETR.

    python benchmarks/segmentor_step.py [--part vit|swin] [--side N] [--repeat 3] [--threads N] [--device cpu|cuda]

vit:  ViT-L/16 at 112^3, frozen: EncoderSegmentor (adapter width 256, precision "auto") and published_segmentor.py.
swin: SwinUNETR of 48 features at 96^3, all of it trained: EncoderSegmentor and MONAI's, float32.

Each variant lives in its own process, for its own peak memory; the two take turns, one step at a time, after one step
each to warm up. A step is a forward pass and a backward pass from a fixed gradient of the logits, without optimiser.
Prints a line of JSON for each variant, one for the comparison, and a table.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import re
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from part_clock import BACKWARD, FORWARD, REST, PartClock, now
from published_segmentor import PublishedSegmentor
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nnssl.encoders import build_encoder
from nnssl.networks.segmentor import EncoderSegmentor

GIB = 2**30
MONAI = "monai.networks.nets.swin_unetr"
CLASSES = 14
SIDES = {"vit": 112, "swin": 96}
BASELINE = {"vit": "published", "swin": "monai"}
TARGETS = {"vit": (3.0, 0.5), "swin": (1.5, 0.7)}  # at least this much faster, at most this share of the memory
PARTS = {
    "vit": (
        (r"\.patch_embed$", "ViT"),
        (r"encoder\.blocks\.\d+$", "ViT"),
        (r"\.spm$", "spatial prior"),
        (r"\.injector$", "injectors"),
        (r"extractor$|extra_extractors\.\d+$", "extractors"),
        (r"neck\.up$", "up-sampling to 1/2"),
        (r"\.channel_merge\d$|neck\.norm\d$", "pyramid"),
        (r"^decoder$", "decoder"),
    ),
    "swin": (
        (r"patch_embed$|layers\.\d$|layers\d\.0$", "Swin"),
        (r"encoder\d+$", "residual encoders"),
        (r"decoder\d$|(^|decoder\.)out$", "decoder"),
    ),
}


@dataclass(frozen=True)
class Job:
    """What a worker process builds and runs."""

    part: str
    variant: str
    side: int  # voxels
    threads: int
    device: str


def main() -> None:
    """Run the chosen parts and print what was found."""
    options = _options()
    for part in SIDES if options.part == "all" else (options.part,):
        side = options.side or SIDES[part]
        jobs = [Job(part, name, side, options.threads, options.device) for name in ("ours", BASELINE[part])]
        ours, baseline = compare(jobs, options.repeat)
        for job, found in zip(jobs, (ours, baseline), strict=True):
            print(json.dumps({**asdict(job), **found}))
        result = summary(part, ours, baseline)
        print(json.dumps({"part": part, "side": side, "load": os.getloadavg(), **result}))
        print(table(part, ours, baseline, result), flush=True)


def compare(jobs: list[Job], repeat: int) -> list[dict[str, Any]]:
    """What the jobs report: in turns, but on a GPU, whose memory they would share, one after the other."""
    return take_turns(jobs, repeat) if jobs[0].device == "cpu" else [take_turns([job], repeat)[0] for job in jobs]


def take_turns(jobs: list[Job], repeat: int) -> list[dict[str, Any]]:
    """One step to warm up and `repeat` steps of each job, alternating."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for job in jobs:
        mine, theirs = context.Pipe()
        processes.append(context.Process(target=worker, args=(job, theirs), daemon=True))
        processes[-1].start()
        theirs.close()
        mine.recv()
        pipes.append(mine)
    steps: list[list[dict[str, Any]]] = [[] for _ in jobs]
    for _ in range(1 + repeat):
        for pipe, own in zip(pipes, steps, strict=True):
            own.append(_ask(pipe, "step"))
    found = [{**_ask(pipe, "end"), **medians(own[1:])} for pipe, own in zip(pipes, steps, strict=True)]
    for process in processes:
        process.join()
    return found


def worker(job: Job, pipe: Connection) -> None:
    """Build the model, then one step for each message "step"; at "end" report memory and size."""
    torch.set_num_threads(job.threads)
    if job.part == "swin":
        importlib.import_module(MONAI)  # in both processes, or its imports would count for one of them
    imports = peak(job.device)
    model, volume = build(job)
    built = peak(job.device)
    generator = torch.Generator().manual_seed(1)
    gradient = torch.randn((1, CLASSES, *volume.shape[2:]), generator=generator).to(job.device)
    pipe.send("ready")
    while pipe.recv() == "step":
        pipe.send(step(model, volume, gradient, job.part))
    report = {"imports_gib": imports, "built_gib": built, "peak_gib": peak(job.device)}
    report["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    pipe.send({**report, "gflop": forward_gflop(model, volume)})


def build(job: Job) -> tuple[nn.Module, Tensor]:
    """The model in training mode and its input: for both variants the same values, in the range each expects."""
    torch.manual_seed(0)
    volume = torch.rand((1, 1, *(job.side,) * 3))
    if (job.part, job.variant) == ("vit", "ours"):
        model: nn.Module = EncoderSegmentor(1, CLASSES, "vit_large_16", "unet", adapter_width=256)
    elif job.part == "vit":
        model, volume = PublishedSegmentor(build_encoder("vit_large_16"), CLASSES), volume * 2 - 1
    elif job.variant == "ours":
        model = EncoderSegmentor(1, CLASSES, "swin_unetr", "swin_unetr", frozen=False, norm="instance")
    else:
        model = importlib.import_module(MONAI).SwinUNETR(in_channels=1, out_channels=CLASSES, feature_size=48)
    return model.to(job.device).train(), volume.to(job.device)


def step(model: nn.Module, volume: Tensor, gradient: Tensor, part: str) -> dict[str, Any]:
    """Seconds of a forward and of a backward pass, of the process's CPU time, and of each part (forward, backward)."""
    device, clock = volume.device, PartClock(volume.device)
    with clock.watching(model, PARTS[part]):
        started, cpu = now(device), time.process_time()
        logits = model(volume)
        between = now(device)
        clock.enter(REST, BACKWARD)
        logits.backward(gradient)
        clock.enter(REST, FORWARD)
        ended = now(device)
    model.zero_grad(set_to_none=True)
    seconds = {"forward": between - started, "backward": ended - between, "step": ended - started}
    return {**seconds, "cpu": time.process_time() - cpu, "split": clock.seconds}


def forward_gflop(model: nn.Module, volume: Tensor) -> float:
    """GFLOP (two per multiplication and addition) of a forward pass, as PyTorch counts them, without computing it."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.to("meta")(volume.to("meta"))
    return float(counter.get_total_flops()) / 1e9


def peak(device: str) -> float:
    """GiB: highest resident set of this process so far, or highest allocation on the GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / GIB
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert match is not None
    return int(match[1]) * 1024 / GIB


def medians(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over steps of all that was timed, and the single steps."""
    labels = dict.fromkeys(label for one in steps for label in one["split"])
    split = {
        label: [median(one["split"].get(label, (0.0, 0.0))[way] for one in steps) for way in (FORWARD, BACKWARD)]
        for label in labels
    }
    middle = {key: median(one[key] for one in steps) for key in ("forward", "backward", "step", "cpu")}
    return {**middle, "split": split, "steps": [one["step"] for one in steps], "cpus": [one["cpu"] for one in steps]}


def summary(part: str, ours: dict[str, Any], baseline: dict[str, Any]) -> dict[str, Any]:
    """How much faster (median of the ratios of neighbouring steps), and the share of the memory that is needed.

    CPU time depends less on what else the machine does than time on the wall. Memory is compared as it is, and above
    what the imports take in both processes.
    """
    wall, cpu = (
        [slow / fast for fast, slow in zip(ours[key], baseline[key], strict=True)] for key in ("steps", "cpus")
    )
    share = ours["peak_gib"] / baseline["peak_gib"]
    above = (ours["peak_gib"] - ours["imports_gib"]) / (baseline["peak_gib"] - baseline["imports_gib"])
    faster_wanted, share_wanted = TARGETS[part]
    return {
        "times_faster": median(wall),
        "times_faster_each": wall,
        "times_faster_cpu_time": median(cpu),
        "memory_share": share,
        "memory_share_above_imports": above,
        "wanted": TARGETS[part],
        "reached": median(wall) >= faster_wanted and max(share, above) <= share_wanted,
    }


def table(part: str, ours: dict[str, Any], baseline: dict[str, Any], result: dict[str, Any]) -> str:
    """The same for people, with the split by part."""
    rows = [f"{part:28}{'ours':>16}{BASELINE[part]:>16}{'ratio':>8}"]
    for label, key in (
        ("step, seconds", "step"),
        ("  forward", "forward"),
        ("  backward", "backward"),
        ("  CPU time", "cpu"),
        ("peak memory, GiB", "peak_gib"),
        ("  after building", "built_gib"),
        ("  imports", "imports_gib"),
        ("forward, GFLOP", "gflop"),
    ):
        rows.append(f"{label:28}{ours[key]:16.2f}{baseline[key]:16.2f}{_ratio(baseline[key], ours[key])}")
    rows.append("forward + backward, seconds")
    for label in dict.fromkeys([*ours["split"], *baseline["split"]]):
        pair = [found["split"].get(label, (0.0, 0.0)) for found in (ours, baseline)]
        cells = "".join(f"{f'{one[0]:.2f} + {one[1]:.2f}':>16}" for one in pair)
        rows.append(f"  {label:26}{cells}{_ratio(sum(pair[1]), sum(pair[0]))}")
    rows.append(
        f"{result['times_faster']:.2f} times faster (CPU time {result['times_faster_cpu_time']:.2f}; wanted "
        f"{result['wanted'][0]}), memory {result['memory_share']:.3f} (above imports "
        f"{result['memory_share_above_imports']:.3f}; wanted {result['wanted'][1]}): "
        + ("reached" if result["reached"] else "NOT reached")
    )
    return "\n".join(rows)


def _ratio(baseline: float, ours: float) -> str:
    return f"{baseline / ours:8.2f}" if ours > 0 else f"{'':8}"


def _ask(pipe: Connection, message: str) -> Any:
    pipe.send(message)
    return pipe.recv()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("all", *SIDES), default="all")
    parser.add_argument("--side", type=int, help="voxels per side of the input (default: vit 112, swin 96)")
    parser.add_argument("--repeat", type=int, default=3, help="timed steps of each variant")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each variant")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
