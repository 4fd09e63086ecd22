"""A raw nnU-Net data set folder: its dataset.json, its cases, how to check and how to write one."""

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.dataset_conversion.scan_check import declared_values, image_problems, label_problems, map_parallel
from nnssl.paths import load_json, save_json

REQUIRED_KEYS = ("channel_names", "labels", "numTraining", "file_ending")
_ENTRY = "{'images': [paths], 'label': path}"
FILE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")


@dataclass(frozen=True)
class Case:
    """One subject: an image file per channel in the order of channel_names, and its label map where it has one."""

    identifier: str
    images: tuple[Path, ...]
    label: Path | None


def load_dataset_json(folder: Path) -> dict[str, Any]:
    """The checked dataset.json of a raw data set folder.

    Raises:
        FileNotFoundError: no such folder or no dataset.json in it.
        ValueError: every problem of the file, in one line.
    """
    values = _read_dataset_json(folder)
    problems = dataset_json_problems(values)
    if problems:
        raise ValueError(f"{folder / 'dataset.json'}: {'; '.join(problems)}")
    return values


def list_cases(folder: Path, dataset_json: Mapping[str, Any], split: str = "Tr") -> list[Case]:
    """Cases of imagesTr (or imagesTs for split "Ts"), sorted; an optional "dataset" section replaces imagesTr.

    A missing or empty labelsTr means an unlabelled data set: every `label` is None. Files are not opened; image paths
    follow channel_names, so a missing channel shows up in `check_case`.
    """
    if split == "Tr" and dataset_json.get("dataset"):
        return _cases_of_section(folder, dataset_json["dataset"])
    images, labels = folder / f"images{split}", folder / f"labels{split}"
    ending, channels = dataset_json["file_ending"], len(dataset_json["channel_names"])
    identifiers = sorted({match.group(1) for match in map(_image_pattern(ending).fullmatch, _files(images)) if match})
    if not identifiers:
        raise FileNotFoundError(
            f"{images}: no image CASE_0000{ending} was found; put one file per case and channel there, "
            f"or correct file_ending in {folder / 'dataset.json'}"
        )
    labelled = any(name.endswith(ending) for name in _files(labels))
    return [
        Case(
            name,
            tuple(images / f"{name}_{channel:04d}{ending}" for channel in range(channels)),
            labels / f"{name}{ending}" if labelled else None,
        )
        for name in identifiers
    ]


def check_case(case: Case, dataset_json: Mapping[str, Any]) -> list[str]:
    """Problems of one case, a line each; [] for a good one. Every file is decoded completely (the slow part)."""
    expected = len(dataset_json["channel_names"])
    if len(case.images) != expected:
        return [f"case {case.identifier}: {len(case.images)} images for {expected} channel_names; list one per channel"]
    problems, reference = image_problems(case.images)
    if case.label is not None:
        problems += label_problems(case.label, reference, declared_values(dataset_json["labels"]))
    return problems


def check_raw_dataset(folder: Path, workers: int = 2, progress: bool = False) -> list[str]:
    """Every problem of a raw data set at once: dataset.json, file names, and all scans of training and test cases.

    Raises:
        FileNotFoundError, ValueError: no dataset.json, or one so broken that no case can be listed.
    """
    dataset_json = _read_dataset_json(folder)
    broken = dataset_json_problems(dataset_json)
    problems = [f"{folder / 'dataset.json'}: {problem}" for problem in broken]
    if not _can_list(dataset_json):
        return problems
    cases, found_training = _training_cases(folder, dataset_json)
    problems += found_training + _name_problems(folder, dataset_json, "Ts")
    with contextlib.suppress(FileNotFoundError):  # no test images, or none named after the rule: listed just above
        cases += list_cases(folder, dataset_json, "Ts")
    checks = [(case, dataset_json) for case in cases]
    for found in map_parallel(check_case, checks, workers=workers, title="check" if progress else None):
        problems += found if isinstance(found, list) else [found]
    return problems


def write_dataset_json(
    folder: Path,
    channel_names: Mapping[str, str],
    labels: Mapping[str, int | Sequence[int]],
    num_training: int,
    *,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checked dataset.json (file_ending .nii.gz unless `extra` says otherwise) and return its path."""
    values = {
        "channel_names": dict(channel_names),
        "labels": {name: value if isinstance(value, int) else list(value) for name, value in labels.items()},
        "numTraining": num_training,
        "file_ending": ".nii.gz",
        **(extra or {}),
    }
    problems = dataset_json_problems(values)
    if problems:
        raise ValueError(f"writing {folder / 'dataset.json'}: {'; '.join(problems)}")
    save_json(values, folder / "dataset.json")
    return folder / "dataset.json"


def dataset_json_problems(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with the content of a dataset.json, one phrase each, without looking at any file."""
    missing = [key for key in REQUIRED_KEYS if key not in values]
    problems = [f"key {key!r} is missing; required are {', '.join(REQUIRED_KEYS)}" for key in missing]
    if "channel_names" in values:
        problems += _channel_problems(values["channel_names"])
    if "labels" in values:
        problems += _label_problems(values)
    count = values.get("numTraining", 1)
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        problems.append(f"numTraining is {count!r}; it must be the number of training cases")
    ending = values.get("file_ending", ".nii.gz")
    if ending not in FILE_ENDINGS:
        problems.append(f"file_ending {ending!r} is not supported; use one of {', '.join(FILE_ENDINGS)}")
    return problems + _section_problems(values.get("dataset", {}))


def _channel_problems(channels: Any) -> list[str]:
    if not isinstance(channels, dict) or not channels:
        return [f"channel_names is {channels!r}; expected {{'0': 'CT'}} with one entry per channel"]
    if sorted(channels) != sorted(str(index) for index in range(len(channels))):
        return [f"channel_names has the keys {sorted(channels)}; they must be '0', '1', ... without gaps"]
    return []


def _label_problems(values: Mapping[str, Any]) -> list[str]:
    labels = values["labels"]
    if not isinstance(labels, dict) or labels.get("background") != 0 or isinstance(labels["background"], bool):
        return ["labels must be an object with 'background': 0, for example {'background': 0, 'liver': 1}"]
    for name, value in labels.items():
        entries = value if isinstance(value, list) and name != "ignore" else [value]
        if not entries or any(not isinstance(entry, int) or isinstance(entry, bool) or entry < 0 for entry in entries):
            return [f"label {name!r} is {value!r}; allowed is a whole number, or a list of them for a region"]
        if name != "background" and 0 in entries:
            return [f"label {name!r} is {value!r}; 0 is the background and belongs to no other label"]
    problems = []
    found = sorted(declared_values(labels))
    if found != list(range(len(found))):
        problems.append(f"label values are {found}; they must be consecutive from 0, renumber labels and label maps")
    if "ignore" in labels and labels["ignore"] != found[-1]:
        problems.append(f"label 'ignore' is {labels['ignore']}; it must be the highest value, here {found[-1]}")
    regions = [value for name, value in labels.items() if name not in ("background", "ignore")]
    if any(isinstance(value, list) and len(value) > 1 for value in regions):
        order = values.get("regions_class_order")
        if not isinstance(order, list) or len(order) != len(regions):
            problems.append(f"labels have regions, so regions_class_order must list {len(regions)} values, got {order}")
        else:
            allowed = [value for value in found if value not in (0, labels.get("ignore"))]
            wrong = [value for value in order if type(value) is not int or value not in allowed]
            if wrong:
                problems.append(f"regions_class_order holds {wrong}; allowed are the label values {allowed}")
    return problems


def _section_problems(section: Any) -> list[str]:
    if not isinstance(section, dict):
        return [f"'dataset' must map each case to {_ENTRY}, got {type(section).__name__}"]
    return [f"'dataset' entry {name!r} must be {_ENTRY}" for name in sorted(section) if not _is_entry(section[name])]


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("images"), list):
        return False
    return all(isinstance(path, str) for path in [*entry["images"], entry.get("label") or ""])


def _training_cases(folder: Path, dataset_json: Mapping[str, Any]) -> tuple[list[Case], list[str]]:
    """Training cases that can be checked, and what is wrong with their names and their number."""
    section = dataset_json.get("dataset") or {}
    entries = {name: entry for name, entry in section.items() if _is_entry(entry)} if isinstance(section, dict) else {}
    if section and not entries:
        return [], []  # a problem of dataset.json
    try:
        cases = list_cases(folder, {**dataset_json, "dataset": entries})
    except FileNotFoundError as error:
        return [], [str(error)]
    problems, count = [], len(section) or len(cases)
    if dataset_json.get("numTraining") != count:
        problems.append(
            f"{folder / 'dataset.json'}: numTraining is {dataset_json.get('numTraining')} but {count} training "
            f"cases exist; set it to {count}"
        )
    return cases, problems if section else problems + _name_problems(folder, dataset_json, "Tr")


def _name_problems(folder: Path, dataset_json: Mapping[str, Any], split: str) -> list[str]:
    """Files of images<split> and labels<split> that do not belong together or are not named after the rule."""
    ending, channels = dataset_json["file_ending"], len(dataset_json["channel_names"])
    images, labels = folder / f"images{split}", folder / f"labels{split}"
    names = _files(images)
    matches = {name: _image_pattern(ending).fullmatch(name) for name in names}
    problems = [
        f"{images / name}: not a case of this data set; files must be named CASE_0000{ending}, rename or remove it"
        for name, match in matches.items()
        if match is None
    ]
    found = [match for match in matches.values() if match is not None]
    problems += [
        f"{images / match.group(0)}: channel {match.group(2)} is not in channel_names, "
        f"which has {channels} (0000 to {channels - 1:04d}); remove it or declare the channel"
        for match in found
        if int(match.group(2)) >= channels
    ]
    identifiers = {match.group(1) for match in found}
    for name in _files(labels):
        if not name.endswith(ending) or name.removesuffix(ending) not in identifiers:
            problems.append(f"{labels / name}: label without an image in {images.name}; add the image or remove it")
    return problems


def _cases_of_section(folder: Path, section: Mapping[str, Any]) -> list[Case]:
    """Cases left in place: paths are relative to `folder`, may be absolute and may name environment variables."""
    problems, cases = _section_problems(section), []
    if problems:
        raise ValueError(f"{folder / 'dataset.json'}: {'; '.join(problems)}")
    for name, entry in sorted(section.items()):
        images = tuple(folder / os.path.expandvars(image) for image in entry["images"])
        label = entry.get("label")
        cases.append(Case(name, images, folder / os.path.expandvars(label) if label else None))
    return cases


def _read_dataset_json(folder: Path) -> dict[str, Any]:
    path = folder / "dataset.json"
    if not path.is_file():
        what = "no dataset.json in it" if folder.is_dir() else "no such folder"
        raise FileNotFoundError(
            f"raw data set {folder}: {what}; give a folder with imagesTr and a dataset.json that has the keys "
            f"{', '.join(REQUIRED_KEYS)}"
        )
    values = load_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object with the keys {', '.join(REQUIRED_KEYS)}")
    return values


def _can_list(dataset_json: Mapping[str, Any]) -> bool:
    """Whether cases can be listed and checked although dataset.json has problems."""
    try:
        declared_values(dataset_json["labels"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return False
    channels = dataset_json.get("channel_names")
    return isinstance(channels, dict) and bool(channels) and dataset_json.get("file_ending") in FILE_ENDINGS


def _image_pattern(ending: str) -> re.Pattern[str]:
    return re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}")


def _files(folder: Path) -> list[str]:
    """Names of the visible files of a folder (hidden ones such as ._case.nii.gz of macOS are not data)."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
