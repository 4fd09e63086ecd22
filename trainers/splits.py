"""Which cases train and which validate: cross-validation folds that keep a patient together, few-label subsets."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nnssl.paths import load_json, save_json

Split = dict[str, list[str]]

FOLDS = 5  # nnU-Net
SPLIT_SEED = 12345  # nnU-Net
SPLITS_FILE = "splits_final.json"

# A name names its patient only in these two ways; every other case is its own patient.
_PATIENT_FIRST = re.compile(r"((?:patient|subject|sub)[-_]?\d+)(?:[-_].*)?", re.IGNORECASE)  # patient001_frame01
_FRAME_LAST = re.compile(r"(.+?)_(?:ED|ES|frame\d+|phase\d+|visit\d+|ses-?\d+)", re.IGNORECASE)  # ACDC_001_ED

logger = logging.getLogger(__name__)


def splits_for(dataset_folder: Path, identifiers: list[str]) -> list[Split]:
    """The folds of a data set: `splits_final.json` where there is one, else made and saved there.

    Args:
        dataset_folder: `$nnUNet_preprocessed/DatasetNNN_Name`; its dataset.json may hold "patients": {case: patient}.
        identifiers: all cases that can be trained on.

    Returns:
        [{"train": [...], "val": [...]}, ...], five folds, fewer where there are fewer than five patients. Cases that
        the file names and `identifiers` lacks (left out by preprocessing) are left out with a warning.

    Raises:
        ValueError: the file does not hold folds, a fold has no case left, or one patient cannot be split.
    """
    file = dataset_folder / SPLITS_FILE
    patients = patients_of(identifiers, _named_patients(dataset_folder))
    if not file.is_file():
        splits = make_splits(patients)
        save_json(splits, file)
        return splits
    splits = _present_cases(load_json(file), identifiers, file)
    _warn_of_shared_patients(splits, patients, file)
    return splits


def cases_of_fold(splits: Sequence[Split], fold: int | str) -> tuple[list[str], list[str]]:
    """(training cases, validation cases) of a fold; fold "all" trains and validates on every case."""
    if fold == "all":
        cases = sorted({case for split in splits for case in split["train"] + split["val"]})
        return cases, cases
    if not (isinstance(fold, int) and 0 <= fold < len(splits)):
        raise ValueError(f"fold {fold}: this data set has {len(splits)} folds; give 0 to {len(splits) - 1} or all")
    return list(splits[fold]["train"]), list(splits[fold]["val"])


def labelled_subset(train: Sequence[str], number: int, seed: int) -> list[str]:
    """`number` of the training cases; for one seed a smaller subset lies within every larger one."""
    if not 1 <= number <= len(train):
        raise ValueError(f"-num_labelled {number}: this fold has {len(train)} training cases; give 1 to {len(train)}")
    order = np.random.RandomState(seed).permutation(len(train))
    cases = sorted(train)
    return sorted(cases[index] for index in order[:number])


def patients_of(identifiers: Sequence[str], named: Mapping[str, str]) -> dict[str, str]:
    """Patient of each case: from `named`, else from the case's name, else the case itself."""
    return {case: named.get(case) or _patient_in_name(case) for case in identifiers}


def make_splits(patients: Mapping[str, str]) -> list[Split]:
    """nnU-Net's seeded folds, drawn over patients; the same as nnU-Net's where each case is its own patient."""
    groups = sorted(set(patients.values()))
    folds = min(FOLDS, len(groups))
    if folds < 2:
        raise ValueError(
            f"splitting {len(patients)} case(s) of {len(groups)} patient(s) into folds: "
            "at least two patients are needed; train fold all instead"
        )
    if folds < FOLDS:
        logger.warning("%d patients: %d folds instead of %d", len(groups), folds, FOLDS)
    validation = [{groups[index] for index in part} for part in _shuffled_parts(len(groups), folds)]
    return [
        {
            "train": sorted(case for case, patient in patients.items() if patient not in held_out),
            "val": sorted(case for case, patient in patients.items() if patient in held_out),
        }
        for held_out in validation
    ]


def _shuffled_parts(count: int, folds: int) -> list[np.ndarray]:
    """The validation parts of scikit-learn's KFold(shuffle=True, random_state=SPLIT_SEED), without scikit-learn."""
    order = np.arange(count)
    np.random.RandomState(SPLIT_SEED).shuffle(order)
    return np.array_split(order, folds)


def _patient_in_name(case: str) -> str:
    for pattern in (_PATIENT_FIRST, _FRAME_LAST):
        match = pattern.fullmatch(case)
        if match is not None:
            return match.group(1)
    return case


def _named_patients(dataset_folder: Path) -> dict[str, str]:
    file = dataset_folder / "dataset.json"
    named = load_json(file).get("patients", {}) if file.is_file() else {}
    if not isinstance(named, dict):
        raise ValueError(f'{file}: "patients" must map case names to patients, got {type(named).__name__}')
    return {case: str(patient) for case, patient in named.items()}


def _present_cases(splits: object, identifiers: Sequence[str], file: Path) -> list[Split]:
    """The folds of a file without the cases that are not preprocessed; each fold must keep some of both kinds."""
    if not isinstance(splits, list) or not all(map(_is_split, splits)):
        raise ValueError(f'{file}: expected a list of {{"train": [...], "val": [...]}}; correct or delete the file')
    known, named = set(identifiers), {case for split in splits for case in split["train"] + split["val"]}
    missing = sorted(named - known)
    kept = [{part: [case for case in split[part] if case in known] for part in ("train", "val")} for split in splits]
    for fold, split in enumerate(kept):
        empty = [word for part, word in (("train", "training"), ("val", "validation")) if not split[part]]
        if empty:
            raise ValueError(
                f"{file}: fold {fold} has no {' and no '.join(empty)} case left; not preprocessed: "
                f"{', '.join(map(repr, missing)) or 'none'}; preprocess them, or delete the file to draw new folds"
            )
    if missing:
        logger.warning("%s: %d case(s) are not preprocessed and left out: %s", file, len(missing), ", ".join(missing))
    if known - named:
        logger.warning(
            "%s: %d preprocessed case(s) are in no fold, first %s", file, len(known - named), min(known - named)
        )
    return kept


def _is_split(split: object) -> bool:
    return isinstance(split, dict) and all(
        isinstance(split.get(part), list) and all(isinstance(case, str) for case in split[part])
        for part in ("train", "val")
    )


def _warn_of_shared_patients(splits: Sequence[Split], patients: Mapping[str, str], file: Path) -> None:
    for fold, split in enumerate(splits):
        shared = {patients[case] for case in split["train"]} & {patients[case] for case in split["val"]}
        if shared:
            logger.warning("%s: fold %d trains and validates on the same patient (%s)", file, fold, min(shared))
