"""Medical Segmentation Decathlon, any Task folder: 3D scans are copied, 4D scans are split into channels.

Source: http://medicaldecathlon.com (Antonelli et al. 2022, doi:10.1038/s41467-022-30695-9), ten Task folders with
imagesTr, labelsTr, imagesTs and a dataset.json. Licence of the data: CC BY-SA 4.0.

This file is the pattern for other data sets: `identity` proposes number and name, `convert` writes the raw folder.
"""
# ruff: noqa: N999  (converters are found by their file name)

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import SimpleITK

from nnssl.dataset_conversion.raw_dataset import write_dataset_json
from nnssl.dataset_conversion.scan_check import check_bytes, map_parallel, read_scan
from nnssl.paths import load_json

ENDING = ".nii.gz"


def identity(source: Path) -> tuple[int, str]:
    """Number and name of a Task folder: Task04_Hippocampus -> (4, "Hippocampus").

    Raises:
        ValueError: the folder is not named so.
    """
    match = re.fullmatch(r"Task(\d{2,3})_(\w+)", source.resolve().name)
    if match is None:
        raise ValueError(f"decathlon source {source}: expected a folder named TaskNN_Name such as Task04_Hippocampus")
    return int(match.group(1)), match.group(2)


def convert(source: Path, target: Path, *, workers: int = 2) -> list[str]:
    """Write the raw data set `target` from Task folder `source`.

    Returns:
        A line for each case that was left out (unreadable, wrong number of channels, no label map).

    Raises:
        FileNotFoundError, ValueError: the source is no Task folder, or none of its cases can be converted.
    """
    task = read_task(source)
    channels = dict(sorted(task["modality"].items(), key=lambda item: int(item[0])))
    work = [
        (source, target, split, name, len(channels))
        for split in ("Tr", "Ts")
        for name in scan_names(source / f"images{split}")
    ]
    problems = [problem for problem in map_parallel(convert_case, work, workers=workers, title="convert") if problem]
    converted = scan_names(target / "labelsTr")
    if not converted:
        raise ValueError(f"converting {source}: no training case could be converted: {problems[0]}")
    write_dataset_json(target, channels, label_numbers(task["labels"]), len(converted), extra=_origin(task))
    return problems


def convert_case(source: Path, target: Path, split: str, name: str, channels: int) -> str | None:
    """Convert one case of a split; a training case needs its label map. Returns what was wrong, or None."""
    image, label = source / f"images{split}" / (name + ENDING), source / f"labels{split}" / (name + ENDING)
    try:
        if split == "Tr":
            read_scan(label)
        split_channels(image, target / f"images{split}", channels)
        if split == "Tr":
            _copy(label, target / f"labels{split}" / label.name)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return None


def split_channels(image: Path, folder: Path, channels: int) -> list[Path]:
    """Write CASE_0000.nii.gz, CASE_0001.nii.gz, ... of a 3D (one channel) or 4D file into `folder`.

    Raises:
        FileNotFoundError, ValueError: absent or damaged file, or not `channels` channels.
    """
    paths = [folder / f"{image.name.removesuffix(ENDING)}_{channel:04d}{ENDING}" for channel in range(channels)]
    check_bytes(image)
    size = _size(image)
    found = size[3] if len(size) == 4 else 1
    if len(size) not in (3, 4) or found != channels:
        raise ValueError(
            f"{image}: size {size} has {found} channel(s), dataset.json declares {channels} modalities; correct one "
            "of the two"
        )
    if len(size) == 3:
        _copy(image, paths[0])
        return paths
    try:
        scan = SimpleITK.ReadImage(str(image))
    except RuntimeError as error:
        raise ValueError(f"{image}: cannot be read as an image; copy it again or remove the case") from error
    folder.mkdir(parents=True, exist_ok=True)
    for channel, path in enumerate(paths):
        _write(SimpleITK.Extract(scan, [*size[:3], 0], [0, 0, 0, channel]), path)
    return paths


def read_task(source: Path) -> dict[str, Any]:
    """The dataset.json of a Task folder, checked for what the conversion needs.

    Raises:
        FileNotFoundError, ValueError: absent, or without usable "modality" and "labels".
    """
    path = source / "dataset.json"
    if not path.is_file() or not scan_names(source / "imagesTr"):
        raise FileNotFoundError(
            f"decathlon source {source}: needs dataset.json and scans in imagesTr; give the unpacked TaskNN_Name folder"
        )
    task = load_json(path)
    for key in ("modality", "labels"):
        entries = task.get(key) if isinstance(task, dict) else None
        if not isinstance(entries, dict) or not entries or not all(str(number).isdigit() for number in entries):
            raise ValueError(f"{path}: {key!r} must map numbers to names, for example {{'0': 'MRI'}}; got {entries!r}")
    return task


def label_numbers(labels: Mapping[str, str]) -> dict[str, int | Sequence[int]]:
    """{"0": "background", "1": "liver"} -> {"background": 0, "liver": 1}; whatever 0 is called, it is the background.

    Raises:
        ValueError: two labels of one name.
    """
    numbers: dict[str, int | Sequence[int]] = {"background": 0}
    for number, name in sorted(labels.items(), key=lambda item: int(item[0])):
        if int(number) == 0:
            continue
        if name in numbers:
            raise ValueError(f"decathlon labels {dict(labels)}: name {name!r} occurs twice; rename one in dataset.json")
        numbers[name] = int(number)
    return numbers


def scan_names(folder: Path) -> list[str]:
    """Names without ending of the scans of a folder, sorted; the hidden ._ files of macOS archives are no scans."""
    if not folder.is_dir():
        return []
    names = (path.name for path in folder.iterdir())
    return sorted(name.removesuffix(ENDING) for name in names if name.endswith(ENDING) and not name.startswith("."))


def _size(image: Path) -> tuple[int, ...]:
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(image))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(f"{image}: cannot be read as an image; copy it again or remove the case") from error
    return tuple(reader.GetSize())


def _write(scan: SimpleITK.Image, path: Path) -> None:
    try:
        SimpleITK.WriteImage(scan, str(path), True)
    except RuntimeError as error:
        raise OSError(f"writing {path}: failed; is the disk full or the folder read-only? ({error})") from error


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _origin(task: Mapping[str, Any]) -> dict[str, str]:
    """What the source says about itself, kept in the new dataset.json."""
    kept = {key: str(task[key]) for key in ("name", "description", "reference", "licence") if task.get(key)}
    return {"licence": "CC BY-SA 4.0", **kept, "converted_by": "nnssl_convert decathlon"}
