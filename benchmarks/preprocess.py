"""Preprocessing of labelled scans: ours against stock nnU-Net's, same cases and target spacing, in turns.

    python benchmarks/preprocess.py --raw $nnUNet_raw [--sets hippocampus head_neck synthetic] [--cases 6] [--out FILE]

Each side lives in its own process with one thread, for its own start-up time and peak memory; the two take turns, one
case at a time, after one small case each to warm up. Stock: DefaultPreprocessor with nnU-Net's default resampling
(cubic images, linear label maps). Ours: NnsslPreprocessor with the plan that nnssl_plan_and_preprocess writes. Target:
the spacing of that plan, where it resamples; hippocampus keeps its voxels. Then, of the stored cases: PSNR of images to
the same resampling in float64, and per label the Dice of the round trip to native space and back to the label map.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import synthetic_ct
from preprocess_quality import Job, plans_of, quality

SETS = {  # data set, target spacing X Y Z in mm; None: that of the scans
    "hippocampus": ("Dataset004_Hippocampus", (1.0, 1.0, 1.0)),
    "head_neck": ("Dataset101_HeadNeckCT", (2.7, 2.7, 2.5)),
    "synthetic": (synthetic_ct.NAME, (1.2, 1.2, 1.5)),
}
TARGETS = {"hippocampus": 1.0, "head_neck": 3.0, "synthetic": 3.0}  # at least this many times the cases per minute
SIDES = ("stock", "ours")


def main() -> None:
    """Run the chosen sets, print a table and write what was found as JSON."""
    options = _options()
    found = {}
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        for name in options.sets:
            raw = options.raw / SETS[name][0]
            if name == "synthetic":
                raw = synthetic_ct.write_synthetic(Path(folder), tuple(options.synthetic))
            found[name] = compare(raw, SETS[name][1], Path(folder) / name, options.cases)
            print(table(name, found[name]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def compare(raw: Path, spacing_mm: tuple[float, float, float], work: Path, cases: int) -> dict[str, Any]:
    """Both sides in turns over evenly spread cases, then the quality of what they stored."""
    names = sorted(path.name.removesuffix(".nii.gz") for path in (raw / "labelsTr").glob("*.nii.gz"))
    chosen = names[:: max(1, len(names) // cases)][:cases]
    jobs = [Job(side, raw, spacing_mm, work / side) for side in SIDES]
    context = multiprocessing.get_context("spawn")
    pipes, processes, start_up = [], [], []
    for job in jobs:
        job.output.mkdir(parents=True)
        mine, theirs = context.Pipe()
        processes.append(context.Process(target=worker, args=(job, theirs), daemon=True))
        started = time.monotonic()
        processes[-1].start()
        theirs.close()
        mine.recv()
        start_up.append(time.monotonic() - started)
        pipes.append(mine)
    times: list[list[tuple[float, float]]] = [[], []]
    for case in [min(chosen, key=lambda case: _bytes(raw, case)), *chosen]:
        for pipe, own in zip(pipes, times, strict=True):
            pipe.send(case)
            own.append(pipe.recv())
    sides = {}
    for job, pipe, process, own, begun in zip(jobs, pipes, processes, times, start_up, strict=True):
        pipe.send(None)
        base, peak = pipe.recv()
        process.join()
        seconds, cpu = (mean(values) for values in zip(*own[1:], strict=True))
        sides[job.side] = {
            "start_up_s": begun,
            "seconds": seconds,
            "cpu_seconds": cpu,
            "peak_mib": peak,
            "base_mib": base,
        }
    pairs = [stock[1] / ours[1] for stock, ours in zip(times[0][1:], times[1][1:], strict=True)]
    return {
        "cases": len(chosen),
        **sides,
        "speed_up": sides["stock"]["seconds"] / sides["ours"]["seconds"],
        "speed_up_cpu": sides["stock"]["cpu_seconds"] / sides["ours"]["cpu_seconds"],
        "speed_up_cpu_median_of_pairs": float(np.median(pairs)),
        **quality(jobs, chosen),
    }


def worker(job: Job, pipe: Connection) -> None:
    """Preprocess each case that is sent, answer (wall, CPU) seconds; at the end (base, peak) memory in MiB."""
    import torch

    torch.set_num_threads(1)
    run = stock_runner(job) if job.side == "stock" else our_runner(job)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pipe.send("ready")
    while (case := pipe.recv()) is not None:
        for path in job.output.glob(f"{case}*"):
            path.unlink()
        started, cpu = time.monotonic(), time.process_time()
        run(case)
        pipe.send((time.monotonic() - started, time.process_time() - cpu))
    pipe.send((base, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def stock_runner(job: Job) -> Any:
    """nnU-Net's own."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(plans_of(job))
    preprocessor, configuration = DefaultPreprocessor(verbose=False), plans.get_configuration("3d_fullres")
    words = _dataset_json(job.raw)

    def run(case: str) -> None:
        images, label = (
            [str(job.raw / "imagesTr" / f"{case}_0000.nii.gz")],
            str(job.raw / "labelsTr" / f"{case}.nii.gz"),
        )
        preprocessor.run_case_save(str(job.output / case), images, label, plans, configuration, words)

    return run


def our_runner(job: Job) -> Any:
    """Ours, as nnssl_plan_and_preprocess runs it in a worker."""
    from nnssl.data.freed_memory import return_freed_memory
    from nnssl.data.preprocess_run import Target
    from nnssl.data.preprocessing import NnsslPlansManager, NnsslPreprocessor
    from nnssl.dataset_conversion.raw_dataset import Case

    return_freed_memory()
    plans, preprocessor = NnsslPlansManager(plans_of(job)), NnsslPreprocessor()
    words, targets = _dataset_json(job.raw), (Target("3d_fullres", job.output, "benchmark"),)

    def run(case: str) -> None:
        scan, label = job.raw / "imagesTr" / f"{case}_0000.nii.gz", job.raw / "labelsTr" / f"{case}.nii.gz"
        preprocessor.store_case(Case(case, (scan,), label), targets, plans, words)

    return run


def table(name: str, found: dict[str, Any]) -> str:
    """What a reader wants to see."""
    rows = [f"{name}: {found['cases']} cases", f"{'':24}{'stock':>10}{'ours':>10}"]
    for key, words in (
        ("start_up_s", "start-up [s]"),
        ("seconds", "per case [s]"),
        ("cpu_seconds", "CPU per case [s]"),
        ("peak_mib", "peak memory [MiB]"),
    ):
        rows.append(f"{words:24}{found['stock'][key]:10.2f}{found['ours'][key]:10.2f}")
    for key, place in (("mean", 0), ("lowest", 1)):
        rows.append(
            f"PSNR {key + ' [dB]':19}{found['psnr_db']['stock'][place]:10.1f}{found['psnr_db']['ours'][place]:10.1f}"
        )
    ratios = f"{found['speed_up']:.2f} (CPU time {found['speed_up_cpu']:.2f}, median of pairs "
    rows.append(
        f"times the cases per minute: {ratios}{found['speed_up_cpu_median_of_pairs']:.2f}); wanted {TARGETS[name]:g}"
    )
    rows.append(f"largest loss of round-trip Dice of a label: {found['largest_loss_of_dice']:+.4f}; allowed 0.002")
    return "\n".join(rows) + "\n"


def _bytes(raw: Path, case: str) -> int:
    return (raw / "imagesTr" / f"{case}_0000.nii.gz").stat().st_size


def _dataset_json(raw: Path) -> dict[str, Any]:
    return json.loads((raw / "dataset.json").read_text(encoding="utf-8"))


def _options() -> argparse.Namespace:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--raw", type=Path, required=True, help="nnU-Net's folder of raw data sets")
    words.add_argument("--work", type=Path, help="folder for what is written; it is removed at the end")
    words.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    words.add_argument("--cases", type=int, default=6)
    words.add_argument("--synthetic", nargs=3, type=int, default=(320, 320, 512), metavar=("X", "Y", "Z"))
    words.add_argument("--out", type=Path)
    return words.parse_args()


if __name__ == "__main__":
    main()
