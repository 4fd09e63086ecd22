"""What pretraining reads from the plans of one or several data sets: recipe, geometry, stored cases."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nnssl.config import flattened, from_dict
from nnssl.data.exclusion import held_out_cases
from nnssl.data.mixing import check_weights
from nnssl.data.stamp import check_stamp
from nnssl.data.volumes import StoredFolder, stored_cases
from nnssl.encoders.base import IntensityRange
from nnssl.geometry import depth_axis
from nnssl.paths import dataset_id, dataset_name, load_json, plans_in, preprocessed_folder
from nnssl.recipe import RECIPES, PretrainRecipe
from nnssl.trainers.splits import SPLITS_FILE, cases_of_fold, splits_for

CONFIGURATION = "pretrain"
# of the stock keys, those that fix what the encoder sees; data sets that are mixed must agree in them
_SHARED_KEYS = ("spacing", "patch_size", "preprocessor_name", "resampling_fn_data", "resampling_fn_data_kwargs")


@dataclass(frozen=True)
class PretrainPlan:
    """The common plan of the data sets of one run."""

    datasets: tuple[str, ...]
    name: str  # of the plans file
    encoder: str
    intensity: IntensityRange
    spacing_mm: tuple[float, float, float]
    orientation: str
    axes: str
    recipe: PretrainRecipe
    encoder_options: dict[str, Any] = field(default_factory=dict)  # what differs from the line of ENCODERS
    weights: dict[str, float] = field(default_factory=dict)  # of the data sets; empty: every image counts alike

    @property
    def depth_axis(self) -> int:
        """The axis that crops treat apart: 0 X, 1 Y, 2 Z (`geometry.depth_axis`)."""
        return depth_axis(self.spacing_mm)


def read_plan(datasets: Sequence[str], plans_name: str) -> PretrainPlan:
    """The plan that all data sets share.

    Raises:
        FileNotFoundError: a data set has no such plans file; the message says which command makes it.
        ValueError: no plan of nnssl, no pretrain configuration, or the data sets were planned differently.
    """
    planned = {dataset: _planning(_read(dataset, plans_name, datasets), dataset, plans_name) for dataset in datasets}
    first, *others = datasets
    for other in others:
        _check_equal(planned[first], planned[other], (first, other))
    values = planned[first]
    return PretrainPlan(
        datasets=tuple(datasets),
        name=plans_name,
        encoder=values["encoder"],
        intensity=from_dict(IntensityRange, values["intensity"]),
        spacing_mm=tuple(values["configuration"]["spacing"]),
        orientation=values["orientation"],
        axes=values["axes"],
        recipe=from_dict(PretrainRecipe, values["recipe"]),
        encoder_options=values["encoder_options"],
    )


def weighted(plan: PretrainPlan, assignments: Sequence[str]) -> PretrainPlan:
    """The plan with weights of its data sets, given as DATASET=WEIGHT; none: every image counts alike.

    Raises:
        ValueError: no number, or not one weight above 0 for each data set of the plan.
    """
    weights = {}
    for assignment in assignments:
        dataset, _, text = assignment.rpartition("=")
        try:
            weight = float(text) if dataset else math.nan
        except ValueError:
            weight = math.nan
        if math.isnan(weight):
            raise ValueError(f"-weights {assignment}: expected DATASET=NUMBER, for example 4=1 202=3")
        weights[dataset_name(dataset)] = weight
    if weights:
        check_weights(weights, plan.datasets)
    return replace(plan, weights=weights)


def folders_of(plan: PretrainPlan, fold: int | None, exclusions: Sequence[str] = ()) -> list[StoredFolder]:
    """Stored cases of each data set, without those that the exclusions name; with a fold, without its validation cases.

    Data sets without labels have no folds: all of their cases are used.

    Args:
        exclusions: lines of `read_exclusions`.

    Raises:
        FileNotFoundError: a data set has no stored volumes of this plan.
        ValueError: the volumes are incomplete or of another plan, the fold does not exist, an exclusion names no case,
            or no case is left.
    """
    folders = [_stored_folder(plan, dataset) for dataset in plan.datasets]
    held_out = held_out_cases(exclusions, {folder.dataset: folder.cases for folder in folders})
    if fold is not None:
        for dataset in plan.datasets:
            configurations = _read(dataset, plan.name, plan.datasets)["configurations"]
            held_out[dataset] |= _validation_cases(dataset, configurations, fold)
    kept = [
        folder._replace(cases=[case for case in folder.cases if case not in held_out[folder.dataset]])
        for folder in folders
    ]
    if not any(folder.cases for folder in kept):
        left_out = [f"-f {fold}"] * (fold is not None) + ["-exclude"] * bool(exclusions)
        raise ValueError(f"{' and '.join(left_out)}: no case is left to pretrain on; add a data set or leave it out")
    return kept


def _stored_folder(plan: PretrainPlan, dataset: str) -> StoredFolder:
    """All stored cases of one data set, checked against the plan."""
    plans = _read(dataset, plan.name, plan.datasets)
    folder = preprocessed_folder() / dataset / plans["configurations"][CONFIGURATION]["data_identifier"]
    cases = stored_cases(folder)
    if not cases:
        raise FileNotFoundError(
            f"pretraining on {dataset}: no stored volumes in {folder}; "
            f"run nnssl_plan_and_preprocess {_planner_words(plan.datasets, plan.encoder)} -c {CONFIGURATION}"
        )
    check_stamp(folder.parent, plans, CONFIGURATION)
    return StoredFolder(dataset, folder, cases)


def _validation_cases(dataset: str, configurations: dict[str, Any], fold: int) -> set[str]:
    """Cases that validate in this fold of fine-tuning, which splits the cases of 3d_fullres."""
    folder = preprocessed_folder() / dataset
    labels = [path.name.removesuffix(".gz") for path in (folder / "gt_segmentations").glob("*") if path.is_file()]
    labelled = sorted(Path(name).stem for name in labels)  # of case.nii.gz and case.mha alike
    if not labelled and not (folder / SPLITS_FILE).is_file():
        return set()
    trained = stored_cases(folder / configurations.get("3d_fullres", {}).get("data_identifier", "none"))
    splits_for(folder, trained or labelled)  # draws the folds where there are none yet, else checks them
    named = load_json(folder / SPLITS_FILE)  # a case that fine-tuning lacks for now is held out all the same
    return set(cases_of_fold(named, fold)[1])


def _read(dataset: str, plans_name: str, datasets: Sequence[str]) -> dict[str, Any]:
    path = preprocessed_folder() / dataset / f"{plans_name}.json"
    if path.is_file():
        return load_json(path)
    known = ", ".join(plans_in(path.parent)) or "none"
    encoder = plans_name.removeprefix("nnsslPlans_") if plans_name.startswith("nnsslPlans_") else "ENCODER"
    recipe = next((name for name in RECIPES if encoder.endswith(f"_{name}")), None)
    if recipe is not None:
        encoder = f"{encoder.removesuffix(f'_{recipe}')} --recipe {recipe}"
    raise FileNotFoundError(
        f"plans {plans_name!r} of {dataset}: no such file {path}; there are: {known}; "
        f"make them with: nnssl_plan_and_preprocess {_planner_words(datasets, encoder)}"
    )


def _planner_words(datasets: Sequence[str], encoder: str) -> str:
    return f"-d {' '.join(str(dataset_id(dataset)) for dataset in datasets)} -e {encoder}"


def _planning(plans: dict[str, Any], dataset: str, plans_name: str) -> dict[str, Any]:
    """The part of a plans file that fixes what the encoder sees and how it is trained."""
    path = preprocessed_folder() / dataset / f"{plans_name}.json"
    section, configuration = plans.get("nnssl"), plans.get("configurations", {}).get(CONFIGURATION)
    if section is None or configuration is None:
        missing = "'nnssl' section" if section is None else f"configuration {CONFIGURATION!r}"
        raise ValueError(f"plans {path}: no {missing}; make plans with nnssl_plan_and_preprocess -c {CONFIGURATION}")
    try:
        return {
            "configuration": {key: configuration[key] for key in _SHARED_KEYS},
            "normalisation": sorted(set(configuration["normalization_schemes"])),  # one entry per channel
            "recipe": section["pretrain"],
            "encoder_options": section.get("encoder_options", {}),
            **{key: section[key] for key in ("encoder", "intensity", "orientation", "axes")},
        }
    except KeyError as error:
        raise ValueError(f"plans {path}: {error} is missing; plan again with nnssl_plan_and_preprocess") from error


def _check_equal(first: dict[str, Any], other: dict[str, Any], names: tuple[str, str]) -> None:
    one, two = flattened(first), flattened(other)
    differing = [f"{key} {one.get(key)} and {two.get(key)}" for key in one | two if one.get(key) != two.get(key)]
    if differing:
        numbers = " ".join(str(dataset_id(name)) for name in names)
        raise ValueError(
            f"data sets {names[0]} and {names[1]} were planned differently for pretraining: {'; '.join(differing)}; "
            f"plan them together: nnssl_plan_and_preprocess -d {numbers} -e {first['encoder']}"
        )
