"""Hours, disk and memory that a plan takes on this machine, from a few measured cases and training steps."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nnssl.config import to_dict
from nnssl.data.preprocess_run import Target, usable_cases
from nnssl.data.preprocessing import NnsslPlansManager, NnsslPreprocessor
from nnssl.data.stored_shape import stored_shape
from nnssl.data.volumes import default_workers
from nnssl.geometry import triple
from nnssl.paths import preprocessed_folder, save_json
from nnssl.planners.budgets import FinetunePlan, PretrainPlan
from nnssl.planners.encoder_planner import EncoderPlanner, plan_together
from nnssl.planners.explain import Decision
from nnssl.planners.memory import GB, finetune_bytes
from nnssl.planners.pretrain_memory import assumed_views, pretrain_bytes
from nnssl.planners.probe import FinetuneStep, Measured, PretrainStep, measure
from nnssl.recipe import FineTuneRecipe, PretrainRecipe

PROBED_CASES = 3  # of different sizes
CPU_BATCH = 2  # of a measured step without a GPU, where time grows with the batch
VALIDATION_SHARE = 1 / 3  # of a training step: forward only


@dataclass(frozen=True)
class Storing:
    """Preprocessing of a few cases, and what that says of all of them."""

    configuration: str
    cases: int
    probed: int
    seconds: float  # of all cases, one after the other
    stored_bytes: float  # of all cases


def estimates(planners: Sequence[EncoderPlanner], device: str, processes: int) -> Iterator[list[Decision]]:
    """What the plans take, per data set; they share one pretraining, which is measured once.

    Args:
        planners: have planned, together.
        device: "cpu", "cuda" or "mps", of the training steps.
        processes: of preprocessing.
    """
    first = planners[0]
    together = pretrain_rows(first.pretrain_plan or plan_together(list(planners)), first, device)
    for planner in planners:
        yield [*estimate_dataset(planner, device, processes), *together]


def keep_estimate(planner: EncoderPlanner, rows: Sequence[Decision]) -> None:
    """Add the rows to the plans file."""
    assert planner.plans is not None
    planner.plans["nnssl"]["estimate"] = [to_dict(row) for row in rows]
    save_json(planner.plans, preprocessed_folder() / planner.raw.name / f"{planner.plans_identifier}.json")


def estimate_dataset(planner: EncoderPlanner, device: str, processes: int) -> list[Decision]:
    """Preprocessing, and fine-tuning where there are labels; the planner has planned."""
    storings = [measure_storing(planner, name) for name in _configurations(planner)]
    rows = [storing_row(storing, processes) for storing in storings]
    rows.append(disk_row(storings, shutil.disk_usage(preprocessed_folder()).free))
    if planner.raw.labelled:
        rows += finetune_rows(planner.plan_finetune(), device)
    return rows


def measure_storing(planner: EncoderPlanner, configuration: str) -> Storing:
    """Store a few cases of different sizes in a temporary folder; time and bytes grow with the voxels."""
    assert planner.plans is not None
    plans, raw = NnsslPlansManager(planner.plans), planner.raw
    settings = planner.plans["configurations"][configuration]
    found = planner.fingerprint
    stored = np.array(
        [np.prod(stored_shape(*sizes, settings)) for sizes in zip(found.shapes, found.spacings, strict=True)]
    )
    handled = stored + np.prod(np.array(found.shapes, dtype=float), axis=1)  # voxels read and written
    good = {case.identifier: place for place, case in enumerate(usable_cases(raw, "pretrain"))}
    cases = [case for case in usable_cases(raw, configuration) if case.identifier in good]
    places = np.array([good[case.identifier] for case in cases])
    picks = probed(handled[places])
    with tempfile.TemporaryDirectory() as folder:
        target = (Target(configuration, Path(folder), ""),)
        store = NnsslPreprocessor().store_case
        store(cases[picks[0]], target, plans, raw.dataset_json)  # the first one is slow
        begun = time.perf_counter()
        for pick in picks:
            store(cases[pick], target, plans, raw.dataset_json)
        seconds = time.perf_counter() - begun
        written = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    chosen = places[picks]
    return Storing(
        configuration,
        len(cases),
        len(picks),
        seconds * float(handled[places].sum() / handled[chosen].sum()),
        written * float(stored[places].sum() / stored[chosen].sum()),
    )


def probed(sizes: Sequence[float] | np.ndarray) -> list[int]:
    """Which cases are measured: the middles of three equal parts, ordered by size; few cases: all of them."""
    order = np.argsort(sizes, kind="stable")
    if len(order) <= PROBED_CASES:
        return [int(place) for place in order]
    return [int(order[len(order) * (2 * part + 1) // (2 * PROBED_CASES)]) for part in range(PROBED_CASES)]


def finetune_rows(plan: FinetunePlan, device: str) -> list[Decision]:
    """Hours of one fold, and memory."""
    batch = _measured_batch(plan.batch_size, device)
    seen = measure(FinetuneStep(plan.network, plan.geometry.crop, batch), device)
    seconds = finetune_seconds(seen, plan.recipe, plan.batch_size)
    formula = [finetune_bytes(plan.network, plan.geometry.crop, size) for size in (batch, plan.batch_size)]
    why = (
        f"one fold; {step_seconds(seen, plan.batch_size):.2g} s per step, measured on {device} with a batch of "
        f"{batch}; without augmentation, which runs beside it where cores are free, and without the last validation"
    )
    return [
        Decision("3d_fullres", "fine-tuning", duration(seconds), why),
        _memory_row("3d_fullres", seen, formula, device),
    ]


def pretrain_rows(plan: PretrainPlan, planner: EncoderPlanner, device: str) -> list[Decision]:
    """Hours and memory of pretraining with the objective of the encoder's own paper."""
    geometry, recipe = plan.geometry, plan.recipe
    batch = max(2, _measured_batch(recipe.batch_size, device))
    shape = triple(np.rint(geometry.median_shape))
    seen = measure(PretrainStep(planner.spec, recipe, shape, batch), device)
    workers = default_workers()
    seconds = pretrain_seconds(seen, recipe, workers=workers, beside=device == "cuda")
    views = geometry.global_crop, geometry.local_crop
    formula = [pretrain_bytes(planner.spec, *views, size) for size in (batch, recipe.batch_size)]
    why = (
        f"{step_seconds(seen, recipe.batch_size):.2g} s per step for {assumed_views(planner.spec)}, measured on "
        f"{device} with a batch of {batch}; views of one volume take {seen.prepare_seconds:.2g} s in each of "
        f"{max(1, workers)} data process(es)"
    )
    return [
        Decision("pretrain", "pretraining", duration(seconds), why),
        _memory_row("pretrain", seen, formula, device),
    ]


def step_seconds(seen: Measured, batch: int) -> float:
    """Seconds of a step with another batch: forward and backward grow with it, the update does not."""
    return seen.passes_seconds * batch / seen.batch + seen.update_seconds


def finetune_seconds(seen: Measured, recipe: FineTuneRecipe, batch: int) -> float:
    """All epochs of one fold."""
    validation = VALIDATION_SHARE * seen.passes_seconds * batch / seen.batch
    return recipe.epochs * (
        recipe.iterations_per_epoch * step_seconds(seen, batch) + recipe.val_iterations * validation
    )


def pretrain_seconds(seen: Measured, recipe: PretrainRecipe, *, workers: int, beside: bool) -> float:
    """All steps; `beside`: data processes work while the device computes, else they share its cores."""
    learning = step_seconds(seen, recipe.batch_size)
    loading = seen.prepare_seconds * recipe.batch_size / max(1, workers)
    together = beside and workers > 0
    return recipe.steps * (max(learning, loading) if together else learning + loading)


def storing_row(storing: Storing, processes: int) -> Decision:
    """Time of preprocessing one configuration."""
    working = min(processes, storing.cases)
    why = (
        f"{storing.cases} cases in {working} process{'es, if as many cores are free' if working > 1 else ''}; "
        f"measured on {storing.probed}: {storing.seconds / storing.cases:.2g} s per case"
    )
    return Decision(storing.configuration, "preprocessing", duration(storing.seconds / working), why)


def disk_row(storings: Sequence[Storing], free: float) -> Decision:
    """Disk that the stored volumes take, and whether it is there."""
    needed = sum(storing.stored_bytes for storing in storings)
    parts = ", ".join(f"{storing.configuration} {storing.stored_bytes / GB:.3g} GB" for storing in storings)
    there = f"{free / GB:.0f} GB are free" if needed < free else f"ONLY {free / GB:.3g} GB ARE FREE"
    return Decision("all", "disk", f"{needed / GB:.3g} GB", f"stored volumes: {parts}; {there}; without checkpoints")


def duration(seconds: float) -> str:
    """A time span in the unit that reads best."""
    for unit, name in ((86_400.0 * 3, "days"), (3_600.0, "h"), (60.0, "min")):
        if seconds >= unit:
            size = 86_400.0 if name == "days" else unit
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} s"


def _memory_row(configuration: str, seen: Measured, formula: Sequence[float], device: str) -> Decision:
    """Memory at the planned batch: the formula's, corrected by what was measured."""
    at_measured, at_planned = formula
    have = _device_bytes(device)
    needed = seen.peak_bytes * at_planned / at_measured
    enough = "" if needed < have else "; TOO MUCH FOR THIS MACHINE: plan with a lower -gpu_memory_target"
    why = (
        f"of {have / GB:.0f} GB on {device}; measured {seen.peak_bytes / GB:.2f} GB with a batch of {seen.batch}, "
        f"{seen.peak_bytes / at_measured:.2f} times the formula{enough}"
    )
    return Decision(configuration, "memory", f"{needed / GB:.1f} GB", why)


def _device_bytes(device: str) -> float:
    """Memory of the device."""
    if device == "cuda":
        return float(torch.cuda.get_device_properties(0).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _measured_batch(planned: int, device: str) -> int:
    return planned if device == "cuda" else min(planned, CPU_BATCH)


def _configurations(planner: EncoderPlanner) -> tuple[str, ...]:
    return ("3d_fullres", "pretrain") if planner.raw.labelled else ("pretrain",)
