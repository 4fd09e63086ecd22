"""`nnssl_demo`: the whole road on embedded data, or on a raw data set of your own."""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnssl.commands import command_line
from nnssl.dataset_conversion import demo_brain
from nnssl.dataset_conversion.raw_dataset import list_cases, load_dataset_json
from nnssl.paths import dataset_id, load_json

ENCODER = "vit_tiny_8"
RUN, RUNS = "demo", ("pretrained", "random")  # of pretraining; of training
EXAMPLES = """  nnssl_demo                                   embedded brain data, results in ./nnssl_demo
  nnssl_demo -o /scratch/demo -pretrain_steps 500
  nnssl_demo --raw $nnUNet_raw/Dataset004_Hippocampus
  nnssl_demo --raw $nnUNet_raw/Dataset101_HeadNeckCT -unlabelled $nnUNet_raw/Dataset201_UnlabelledCT
"""


@dataclass(frozen=True)
class Road:
    """What the commands of the road share."""

    output: Path
    labelled: str  # data set folder names
    unlabelled: str | None
    encoder: str
    pretrain_steps: int
    epochs: int
    iterations: int  # per epoch
    device: str

    @property
    def plans(self) -> str:
        return f"nnsslPlans_{self.encoder}"

    @property
    def datasets(self) -> list[str]:
        return [self.labelled, *([self.unlabelled] if self.unlabelled else [])]


def main(argv: Sequence[str] | None = None) -> int:
    """Console script."""
    parser = command_line.parser("nnssl_demo", __doc__ or "", EXAMPLES)
    parser.add_argument("-o", default="nnssl_demo", help="[OPTIONAL] output folder; default ./nnssl_demo")
    parser.add_argument(
        "--raw", metavar="FOLDER", help="[OPTIONAL] a labelled raw data set of your own (DatasetNNN_Name)"
    )
    parser.add_argument("-unlabelled", metavar="FOLDER", help="[OPTIONAL] an unlabelled raw data set beside --raw")
    parser.add_argument("-e", default=ENCODER, help=f"[OPTIONAL] encoder; default {ENCODER}")
    parser.add_argument("-pretrain_steps", type=int, default=100, help="[OPTIONAL] default 100")
    parser.add_argument("-epochs", type=int, default=2, help="[OPTIONAL] training epochs; default 2")
    parser.add_argument("-iterations", type=int, default=25, help="[OPTIONAL] iterations per epoch; default 25")
    command_line.add_device(parser)
    return command_line.run(_work, parser, argv)


def _work(arguments: argparse.Namespace) -> int:
    output = Path(arguments.o).resolve()
    labelled, unlabelled = _prepare_raw(arguments, output)
    road = Road(
        output, labelled, unlabelled, arguments.e, arguments.pretrain_steps, arguments.epochs, arguments.iterations,
        command_line.device(arguments).type,
    )  # fmt: skip
    _set_environment(output)
    _remove_earlier(road)
    started = time.monotonic()
    for title, command in _steps(road):
        if title.startswith("predict"):
            _collect_validation(road)
        _run(title, command, output / "logs")
    _show(road, time.monotonic() - started)
    return 0


def _prepare_raw(arguments: argparse.Namespace, output: Path) -> tuple[str, str | None]:
    """Fill OUTPUT/nnUNet_raw with the embedded data, or with links to the user's folders."""
    raw = output / "nnUNet_raw"
    raw.mkdir(parents=True, exist_ok=True)
    if arguments.raw is None:
        if arguments.unlabelled:
            raise ValueError("-unlabelled needs --raw: give the labelled raw data set as well")
        sizes = demo_brain.DemoSizes()
        print("\n".join(demo_brain.describe(sizes)))
        if not (raw / demo_brain.UNLABELLED / "dataset.json").is_file():
            demo_brain.write_demo(raw, sizes)
        return demo_brain.LABELLED, demo_brain.UNLABELLED
    sources = [Path(folder).resolve() for folder in (arguments.raw, arguments.unlabelled) if folder]
    for source in sources:
        load_dataset_json(source)
        dataset_id(source.name)
        link = raw / source.name
        if link.exists() and link.resolve() != source:
            raise ValueError(f"{link} holds other data than {source}; give another output folder with -o")
        if not link.exists():
            link.symlink_to(source)
    return sources[0].name, sources[1].name if len(sources) > 1 else None


def _set_environment(output: Path) -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[variable] = str(output / variable)
    os.environ.setdefault("nnUNet_n_proc_DA", "0")
    os.environ.setdefault("nnUNet_def_n_proc", "2")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads stall a machine that is shared


def _remove_earlier(road: Road) -> None:
    """Remove runs and predictions of an earlier demo in the same folder, and nothing else."""
    results = road.output / "nnUNet_results"
    runs = [results / "pretrained" / RUN]
    runs += [run for name in RUNS for run in (results / road.labelled).glob(f"*__{road.plans}_{name}__*")]
    names = ("validation_images", "validation_labels", *(f"predictions_{name}" for name in RUNS), "evaluation")
    for folder in [*runs, *(road.output / name for name in names)]:
        shutil.rmtree(folder, ignore_errors=True)


def _steps(road: Road) -> list[tuple[str, list[str]]]:
    """The commands of the road, as a user types them."""
    ids = [name[7:10] for name in road.datasets]
    label, device = ids[0], ["-device", road.device]
    weights = str(road.output / "nnUNet_results/pretrained" / RUN / "encoder.safetensors")
    pretrain = [f"steps={road.pretrain_steps}", "batch_size=8", "base_lr=1e-2", "prototypes=1024", "save_every=50"]
    length = [f"epochs={road.epochs}", f"iterations_per_epoch={road.iterations}", "val_iterations=2"]
    train = [*length, "lr=1e-3", "batch_size=2"]
    start = ["nnssl_train", label, "3d_fullres", "0", "-p", road.plans, "--no_validation", *device]
    steps = [
        ("plan and preprocess", ["nnssl_plan_and_preprocess", "-d", *ids, "-e", road.encoder]),
        ("pretrain", ["nnssl_pretrain", *ids, "-t", "threedino", "-e", road.encoder, "-p", road.plans, "-f", "0",
                      "-run", RUN, *device, "--set", *pretrain]),
        ("train on the pretrained encoder",
         [*start, "-pretrained_weights", weights, "-run", "pretrained", "--set", *train]),
        ("train on a random encoder", [*start, "--random_frozen", "-run", "random", "--set", *train]),
    ]  # fmt: skip
    for run in RUNS:
        steps.append((f"predict ({run})", _predict(road, run, label, device)))
    evaluate = ["nnssl_evaluate", "-ref", str(road.output / "validation_labels"),
                "-pred", str(road.output / "predictions_pretrained"), "-pred2", str(road.output / "predictions_random"),
                "-images", str(road.output / "validation_images"), "-o", str(road.output / "evaluation")]  # fmt: skip
    return [*steps, ("evaluate", evaluate)]


def _predict(road: Road, run: str, label: str, device: list[str]) -> list[str]:
    images, output = road.output / "validation_images", road.output / f"predictions_{run}"
    return ["nnssl_predict", "-i", str(images), "-o", str(output), "-d", label, "-c", "3d_fullres",
            "-p", f"{road.plans}_{run}", "-f", "0", "--disable_tta", *device]  # fmt: skip


def _collect_validation(road: Road) -> None:
    """Link images and labels of fold 0's validation cases; neither training nor pretraining has seen them."""
    raw = road.output / "nnUNet_raw" / road.labelled
    held_out = load_json(road.output / "nnUNet_preprocessed" / road.labelled / "splits_final.json")[0]["val"]
    for case in list_cases(raw, load_dataset_json(raw)):
        if case.identifier in held_out and case.label is not None:
            for source, folder in [(case.label, "validation_labels"), *((i, "validation_images") for i in case.images)]:
                link = road.output / folder / source.name
                link.parent.mkdir(exist_ok=True)
                link.unlink(missing_ok=True)
                link.symlink_to(source.resolve())


def _run(title: str, command: list[str], logs: Path) -> None:
    """Run one command of the road, its output in a log file; stop the demo with its last lines if it fails."""
    logs.mkdir(exist_ok=True)
    log = logs / f"{title.replace(' ', '_').replace('(', '').replace(')', '')}.log"
    print(f"\n[{title}]\n  {' '.join(command)}", flush=True)
    started = time.monotonic()
    script = Path(sys.executable).parent / command[0]
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen([str(script), *command[1:]], stdout=stream, stderr=subprocess.STDOUT)
        code = _watch(process, log, started)
    print(f"\r  {time.monotonic() - started:.0f} s, log: {log}".ljust(100), flush=True)
    if code != 0:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        print(tail, file=sys.stderr)
        raise ValueError(f"{title}: {command[0]} ended with exit code {code}; the whole output is in {log}")


def _watch(process: subprocess.Popen[bytes], log: Path, started: float) -> int:
    """Wait for a command and show its newest line of output on a terminal."""
    while True:
        try:
            return process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            if sys.stdout.isatty():
                tail = log.read_bytes()[-400:].decode("utf-8", "replace").replace("\r", "\n").split("\n")
                newest = next((line for line in reversed(tail) if line.strip()), "")
                print(f"\r  {time.monotonic() - started:4.0f} s  {newest[:90]:<90}", end="", flush=True)


def _show(road: Road, seconds: float) -> None:
    """The table of both runs, and where everything is."""
    runs = load_json(road.output / "evaluation" / "evaluation.json")["runs"]
    labels = list(runs[0]["labels"])
    rows = [["frozen encoder", *labels, "foreground mean [95 %]"]]
    for title, run in zip(("pretrained (3DINO)", "random"), runs, strict=True):
        mean = run["foreground_mean"]["dice"]
        cells = [f"{run['labels'][label]['dice']['mean']:.3f}" for label in labels]
        rows.append([title, *cells, f"{mean['mean']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}]"])
    print(f"\nDice on {len(runs[0]['cases'])} validation cases that neither training nor pretraining has seen")
    print("\n".join(_table(rows)))
    print("A pretraining of minutes is not expected to beat random weights; this shows that every station works.")
    results = road.output / "nnUNet_results"
    print(f"\n{seconds / 60:.1f} minutes. Files:")
    for path in [
        road.output / "nnUNet_preprocessed" / road.labelled / f"{road.plans}.json",
        results / "pretrained" / RUN / "encoder.safetensors",
        results / "pretrained" / RUN / "curves.png",
        *sorted(results.glob(f"{road.labelled}/*/fold_0/progress.png")),
        road.output / "evaluation/evaluation.md",
        *sorted((road.output / "evaluation").glob("**/*.png")),
    ]:
        print(f"  {path}")


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


if __name__ == "__main__":
    sys.exit(main())
