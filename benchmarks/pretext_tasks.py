"""Every pretext task on a tiny ViT and a tiny Swin, MR and CT, and what a linear probe finds afterwards.

Resumable: what has a result file is not done again. Two processes share the work with --part 0/2 and --part 1/2.

    DATA=/path/to/nnUNet_raw python benchmarks/pretext_tasks.py --work /scratch/tasks prepare run table
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

TASKS = ["reconstruction", "inpainting", "simmim", "contrastive", "rotation", "dino", "ibot", "smit", "swin_unetr"]
TASKS += ["threedino", "random"]  # random: no pretraining, the control
ENCODERS = ("vit_tiny_8", "swin_tiny")
SEEDS = (0, 1, 2)
SMALL_HEADS = ["prototypes=1024", "hidden=512"]
OWN_SETTINGS = dict.fromkeys(("dino", "ibot", "smit", "threedino"), SMALL_HEADS)
LABELLED, HELD_OUT = 20, 40


@dataclass(frozen=True)
class Modality:
    """Data sets to learn from, the labelled one to probe, and one spacing for all of them."""

    learn: tuple[int, ...]
    probe: int
    spacing_mm: tuple[float, float, float]
    intensity: str


MODALITIES = {
    "MR": Modality((4, 202), 4, (0.625, 0.625, 0.625), "percentile"),
    "CT": Modality((201,), 101, (3.9, 3.9, 2.5), "window:-500,500"),
}


def main() -> int:
    """Stations in the order given: prepare, run, table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("stations", nargs="+", choices=("prepare", "run", "table"))
    words.add_argument("--work", type=Path, required=True)
    words.add_argument("--steps", type=int, default=200)
    words.add_argument("--batch", type=int, default=2)
    words.add_argument("--tasks", nargs="+", default=TASKS)
    words.add_argument("--modalities", nargs="+", default=list(MODALITIES))
    words.add_argument("--part", default="0/1", help="INDEX/NUMBER of processes that share the work")
    arguments = words.parse_args()
    os.environ["nnUNet_raw"] = os.environ["DATA"]  # noqa: SIM112  (nnU-Net's own spelling)
    for folder in ("preprocessed", "results"):
        os.environ[f"nnUNet_{folder}"] = str(arguments.work / folder)
    os.environ |= {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f"}
    for station in arguments.stations:
        {"prepare": prepare, "run": run, "table": table}[station](arguments)
    return 0


def plans_name(modality: str, encoder: str) -> str:
    """One plan per encoder and modality."""
    return f"tasks{modality}_{encoder}"


def prepare(arguments: argparse.Namespace) -> None:
    """Plan with the command, then store both configurations at the one spacing of the experiment."""
    from nnssl.data.intake import open_dataset
    from nnssl.data.preprocess_run import Request, copy_labels, run_cases
    from nnssl.data.preprocessing import NnsslPlansManager, NnsslPreprocessor
    from nnssl.paths import dataset_name, load_json, preprocessed_folder, save_json

    for modality in arguments.modalities:
        chosen = MODALITIES[modality]
        for encoder in ENCODERS:
            name = plans_name(modality, encoder)
            numbers = [str(number) for number in dict.fromkeys((*chosen.learn, chosen.probe))]
            spacing = [str(side) for side in chosen.spacing_mm]
            command = ["nnssl_plan_and_preprocess", "-d", *numbers, "-e", encoder, "-plans_name", name]
            if not (encoder == "swin_tiny" and modality == "MR"):  # there the preset is 5th to 95th percentile
                command += ["-intensity", chosen.intensity]
            subprocess.run([*command, "--no_pp", "-overwrite_target_spacing", *spacing], check=True)
            for number in numbers:
                folder = preprocessed_folder() / dataset_name(number)
                plans = load_json(folder / f"{name}.json")
                one_resolution = {"spacing": list(chosen.spacing_mm), "stored_limit": None}
                plans["configurations"]["pretrain"] |= one_resolution
                save_json(plans, folder / f"{name}.json")
                raw, roles = open_dataset(number), {"pretrain": chosen.learn, "3d_fullres": (chosen.probe,)}
                copy_labels(raw)
                wanted = Request(tuple(role for role, sets in roles.items() if int(number) in sets), 2)
                if failures := run_cases(NnsslPreprocessor().store_case, raw, NnsslPlansManager(plans), wanted):
                    raise SystemExit(f"{raw.name}: {failures}")


def run(arguments: argparse.Namespace) -> None:
    """Pretrain with the command, then probe; one JSON per task, encoder and modality."""
    index, number = (int(part) for part in arguments.part.split("/"))
    jobs = [(m, e, t) for m in arguments.modalities for t in arguments.tasks for e in ENCODERS]
    for modality, encoder, task in jobs[index::number]:
        result = arguments.work / "done" / f"{modality}_{encoder}_{task}.json"
        if result.is_file():
            continue
        encoder_file = None if task == "random" else pretrained(arguments, modality, encoder, task)
        values = {"training": {} if encoder_file is None else curve(encoder_file.parent / "log.jsonl")}
        started = time.monotonic()
        values |= probe(modality, encoder, encoder_file)
        values["probe_seconds"] = time.monotonic() - started
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_text(json.dumps(values), encoding="utf-8")
        print(f"{result.stem}: Dice {np.nanmean(values['probe'][0]):.3f} (seed 0)", flush=True)


def pretrained(arguments: argparse.Namespace, modality: str, encoder: str, task: str) -> Path:
    """The encoder file of a pretraining, finished now if it was not before. Held-out cases of fold 0 are left out."""
    from nnssl.commands.pretrain import main as nnssl_pretrain

    chosen, name = MODALITIES[modality], f"{modality}_{encoder}_{task}"
    folder = arguments.work / "results" / "pretrained" / name
    words = [str(number) for number in chosen.learn] + ["-t", task, "-e", encoder, "-p", plans_name(modality, encoder)]
    words += ["-run", name] + (["-f", "0"] if chosen.probe in chosen.learn else [])
    words += ["--c"] if (folder / "checkpoint_latest.pt").is_file() else []
    words += ["--set", f"steps={arguments.steps}", f"batch_size={arguments.batch}", "global_crop=[64,64,64]"]
    words += ["local_crop=[32,32,32]", "save_every=50", "drop_path=0", *OWN_SETTINGS.get(task, [])]
    if code := nnssl_pretrain([*words, "-device", "cpu"]):
        raise SystemExit(f"{name}: exit code {code}")
    return folder / "encoder.safetensors"


def curve(log: Path) -> dict[str, float]:
    """Loss at the start and at the end (means of 10 steps), median seconds of a step."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return {
        "first": fmean(row["loss"] for row in rows[:10]),
        "last": fmean(row["loss"] for row in rows[-10:]),
        "seconds": median(row["seconds"] for row in rows),
    }


def probe(modality: str, encoder: str, encoder_file: Path | None) -> dict[str, Any]:
    """Linear probes of frozen features, without a file of one random encoder per seed: "probe", Dice (seeds, cases,
    labels), and "ranks" (seeds,), effective rank of the coarsest map's cells in the held-out cases."""
    import torch

    from nnssl.data.volumes import stored_cases
    from nnssl.evaluation.probing import frozen_case, probe_scores, train_probe
    from nnssl.losses.health import effective_rank
    from nnssl.paths import dataset_name, load_json, preprocessed_folder
    from nnssl.trainers.pretrain_plan import read_plan
    from nnssl.trainers.splits import cases_of_fold, labelled_subset, splits_for

    dataset = dataset_name(str(MODALITIES[modality].probe))
    folder = preprocessed_folder() / dataset
    stored = folder / f"{plans_name(modality, encoder)}_3d_fullres"
    train, held_out = cases_of_fold(splits_for(folder, stored_cases(stored)), 0)
    labelled = labelled_subset(train, LABELLED, 0)
    if len(held_out) < HELD_OUT:  # fold 0 of a small set: fill up with training cases that have no label here
        held_out = held_out + [case for case in train if case not in labelled][: HELD_OUT - len(held_out)]
    classes = len(load_json(folder / "dataset.json")["labels"])
    held_out = held_out[:HELD_OUT]
    plan, tables, ranks, cases = read_plan([dataset], plans_name(modality, encoder)), [], [], {}
    for seed in SEEDS:
        if not cases or encoder_file is None:
            torch.manual_seed(seed)
            network = frozen_encoder(encoder, plan.intensity, encoder_file)
            cases = {case: frozen_case(network, *stored_case(stored, case)) for case in labelled + held_out}
        trained = train_probe([cases[case] for case in labelled], classes, seed=seed)
        tables.append(probe_scores(trained, [cases[case] for case in held_out], classes).tolist())
        cells = torch.cat([cases[case].maps[-1].float().flatten(1).T for case in held_out])
        ranks.append(float(effective_rank(cells)))
    return {"probe": tables, "ranks": ranks}


def frozen_encoder(name: str, intensity: Any, file: Path | None) -> Any:
    """The encoder with the weights of a file, or as it is initialised."""
    from nnssl.encoders import build_encoder
    from nnssl.weights.load import load_encoder

    encoder = build_encoder(name, native_crop=(64, 64, 64), intensity=intensity)
    if file is not None:
        load_encoder(encoder, file)
    return encoder


def stored_case(folder: Path, case: str) -> tuple[Any, Any]:
    """Volume (1, X, Y, Z) in [0, 1] and labels (X, Y, Z) of a stored case."""
    import blosc2
    import torch

    volume = np.asarray(blosc2.open(str(folder / f"{case}.b2nd"))[:], dtype=np.float32)
    labels = np.asarray(blosc2.open(str(folder / f"{case}_seg.b2nd"))[:]).astype(np.int64)
    return torch.from_numpy(volume), torch.from_numpy(labels[0].clip(min=0))


def table(arguments: argparse.Namespace) -> None:
    """Markdown: one row per task; the probe's interval is over cases, seeds averaged."""
    from nnssl.evaluation.statistics import bootstrap_interval, compare

    for modality in arguments.modalities:
        for encoder in ENCODERS:
            print(f"\n### {modality}, {encoder}\n")
            heads = ("task", "loss start", "loss end", "effective rank", "s / step", "probe Dice", "minus random")
            print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
            files = {task: arguments.work / "done" / f"{modality}_{encoder}_{task}.json" for task in arguments.tasks}
            found = {task: json.loads(file.read_text()) for task, file in files.items() if file.is_file()}
            scores = {task: np.nanmean(np.array(values["probe"], dtype=float), 0) for task, values in found.items()}
            for task, values in found.items():
                curve_, interval = values["training"], bootstrap_interval(scores[task])
                cells = [f"{curve_[key]:.3f}" for key in ("first", "last")] if curve_ else ["", ""]
                cells += [f"{fmean(values['ranks']):.1f}", f"{curve_['seconds']:.2f}" if curve_ else ""]
                cells.append(f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]")
                gain = compare(scores["random"], scores[task]).difference if "random" in scores else None
                cells.append(f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]" if gain and curve_ else "")
                print(f"| {task} | {' | '.join(cells)} |")


if __name__ == "__main__":
    sys.exit(main())
