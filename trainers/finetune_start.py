"""Starting a fine-tuning run, or taking it up again: everything is checked before anything is written."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from nnssl.config import from_dict
from nnssl.data.seeds import derived_seed
from nnssl.data.stamp import check_stamp
from nnssl.data.volumes import stored_cases
from nnssl.paths import load_json, plans_in, preprocessed_folder, results_folder, save_json
from nnssl.recipe import FineTuneRecipe
from nnssl.trainers.finetune_encoder import load_for_plans, trainer_class
from nnssl.trainers.finetune_run import (
    FOLD_PLANS,
    EncoderFile,
    RunOptions,
    check_continued,
    check_overlap,
    check_plans,
    check_recipe,
    check_same_run,
    existing_checkpoint,
    run_plans,
)
from nnssl.trainers.frozen_encoder import FrozenEncoderTrainer
from nnssl.trainers.splits import cases_of_fold, labelled_subset, splits_for


@dataclass(frozen=True)
class Request:
    """Which run is asked for."""

    dataset: str  # folder name
    plans: str  # name, without the run's
    configuration: str
    fold: int | str
    device: torch.device
    options: RunOptions = field(default_factory=RunOptions)
    weights: Path | None = None  # encoder file
    trainer: str = "FrozenEncoderTrainer"

    @property
    def preprocessed(self) -> Path:
        """The data set's folder in nnUNet_preprocessed."""
        return preprocessed_folder() / self.dataset

    @property
    def model(self) -> Path:
        """The run's folder in nnUNet_results, which holds its folds."""
        plans = self.plans + (f"_{self.options.name}" if self.options.name else "")
        return results_folder() / self.dataset / f"{self.trainer}__{plans}__{self.configuration}"


class Session(NamedTuple):
    """A trainer that is ready, and lines that say what was found."""

    trainer: FrozenEncoderTrainer
    notes: list[str]


def start(request: Request) -> Session:
    """A trainer of a new run with its encoder in place.

    Raises:
        ValueError, FileNotFoundError: what does not fit; nothing was written.
    """
    seed_everything(request.options.seed)
    plans = planned(request)
    changed = run_plans(plans, request.configuration, request.options)
    file, encoder, notes = None, None, []
    if request.weights is not None:
        allowed = request.options.allowed
        file, encoder, summary = load_for_plans(
            request.weights,
            changed,
            request.configuration,
            allow_partial="partial" in allowed,
            allow_intensity="intensity" in allowed,
        )
        changed = run_plans(plans, request.configuration, request.options, file=file)
        notes = [summary]
    _check_new(request, changed)
    notes += _check_cases(request, changed, file)
    notes.append(f"encoder: {changed['nnssl']['run']['mode']}, trained: {changed['nnssl']['run']['tuning']}")
    trainer = build_trainer(request, changed, going_on=False)
    save_json(changed, Path(trainer.output_folder) / FOLD_PLANS)
    if encoder is not None:
        trainer.set_encoder(encoder.state_dict())
    return Session(trainer, notes)


def resume(request: Request, given: Mapping[str, Any], *, finished: bool = False) -> Session:
    """The trainer of an existing run at its last checkpoint.

    Args:
        given: what the user asked for again, in the words of the run's record; None where not.
        finished: only the final checkpoint will do.
    """
    folder = request.model / f"fold_{request.fold}"
    found = existing_checkpoint(folder)
    if found is None or (finished and found.name != "checkpoint_final.pth"):
        wanted = "checkpoint_final.pth" if finished else "checkpoint"
        raise FileNotFoundError(f"{folder}: no {wanted} there; check -p, -run and the fold, or train first")
    plans = load_json(folder / FOLD_PLANS)
    check_stamp(request.preprocessed, plans, request.configuration)
    check_continued(plans, request.configuration, given, request.options.settings)
    seed = plans["nnssl"]["run"]["seed"]
    seed_everything(seed)
    trainer = build_trainer(request, plans, going_on=not finished)
    trainer.load_checkpoint(str(found))
    seed_everything(derived_seed(seed % 2**32, trainer.current_epoch))  # not the batches that the run began with
    return Session(trainer, [f"continuing from {found} (epoch {trainer.current_epoch} of {trainer.num_epochs})"])


def planned(request: Request) -> dict[str, Any]:
    """The planner's plans of the request."""
    file = request.preprocessed / f"{request.plans}.json"
    if not file.is_file():
        known = ", ".join(plans_in(request.preprocessed)) or "none"
        raise FileNotFoundError(
            f"plans {request.plans!r} of {request.dataset}: no {file}; known plans: {known}; "
            "run nnssl_plan_and_preprocess first"
        )
    plans = load_json(file)
    check_plans(plans, request.configuration)
    return plans


def build_trainer(request: Request, plans: Mapping[str, Any], *, going_on: bool) -> FrozenEncoderTrainer:
    """The trainer of these plans, initialised."""
    dataset_json = load_json(request.preprocessed / "dataset.json")
    found = trainer_class(request.trainer)
    words = {**plans, "continue_training": going_on}
    trainer = found(words, request.configuration, request.fold, dataset_json, request.device)
    trainer.initialize()
    return trainer


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _check_new(request: Request, changed: Mapping[str, Any]) -> None:
    found = existing_checkpoint(request.model / f"fold_{request.fold}")
    if found is not None:
        raise ValueError(
            f"run {request.model.name} fold {request.fold} has {found.name} already; add --c, or name another -run NAME"
        )
    check_same_run(request.model, changed)


def _check_cases(request: Request, plans: Mapping[str, Any], file: EncoderFile | None) -> list[str]:
    """Stored volumes, labels, fold, number of labelled cases, and overlap with pretraining."""
    folder, name = request.preprocessed, plans["configurations"][request.configuration]["data_identifier"]
    cases = stored_cases(folder / name)
    if not cases:
        raise FileNotFoundError(
            f"{folder / name}: no preprocessed cases; run nnssl_plan_and_preprocess -d {folder.name}"
        )
    check_stamp(folder, planned(request), request.configuration)
    labels = load_json(folder / "dataset.json")["labels"]
    check_recipe(from_dict(FineTuneRecipe, plans["nnssl"]["finetune"]), labels, folder.name)
    train, validation = cases_of_fold(splits_for(folder, cases), request.fold)
    options = request.options
    if options.num_labelled is not None:
        labelled_subset(train, options.num_labelled, options.seed)
    if file is None or request.fold == "all" or "overlap" in options.allowed:
        return []
    return [check_overlap(file, folder.name, validation, request.fold)]
