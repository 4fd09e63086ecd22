"""A folder of scans -> Collection: the kind is seen from what lies in it, every file ends as a source or left out."""

import fnmatch
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nnssl.data.intake import bids, pretrain_data
from nnssl.data.intake.collection import Collection, LeftOut, Source, file_ending
from nnssl.data.intake.dicom import dicom_sources
from nnssl.data.intake.dicom_header import is_dicom
from nnssl.dataset_conversion.raw_dataset import Case, list_cases, load_dataset_json
from nnssl.paths import load_json

OTHER_IMAGES = (".hdr", ".img", ".mgz", ".mgh", ".mnc", ".par", ".rec", ".gipl", ".npy", ".npz", ".h5", ".tif", ".tiff")
PARTNERS = (".raw", ".zraw", ".raw.gz")  # voxels of .mhd and .nhdr


def open_collection(path: Path, *, exclude: Sequence[str] = (), processes: int = 1) -> Collection:
    """Describe a folder (nnU-Net raw, BIDS, DICOM, any mixture of files) or a pretrain_data.json.

    Args:
        exclude: patterns as of a shell; files whose relative path, or a part of it, matches one are left out.
        processes: worker processes that read DICOM headers.

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: a file that describes the collection is damaged.
    """
    if path.is_file() and path.suffix == ".json":
        return _excluding(pretrain_data.read_pretrain_data(path), exclude)
    if not path.is_dir():
        what = "a file" if path.exists() else "no such folder"
        raise FileNotFoundError(f"importing {path}: {what}; give a folder of scans or a pretrain_data.json")
    if (path / "pretrain_data.json").is_file():
        return _excluding(pretrain_data.read_pretrain_data(path / "pretrain_data.json"), exclude)
    if _is_raw(path):
        return _excluding(raw_collection(path), exclude)
    files, left_out = _walk(path, exclude)
    if bids.is_bids(path):
        return bids.bids_collection(path, files, left_out)
    return _files_collection(path, files, left_out, processes)


def _is_raw(folder: Path) -> bool:
    """Whether a dataset.json of nnU-Net is there (that of the Decathlon has other keys: its images are just files)."""
    description = folder / "dataset.json"
    return description.is_file() and "channel_names" in load_json(description)


def raw_collection(folder: Path) -> Collection:
    """An nnU-Net raw folder. A labelled case keeps its channels; without labels every channel is a volume of its own.

    Raises:
        FileNotFoundError, ValueError: as of `load_dataset_json` and `list_cases`.
    """
    dataset_json = load_dataset_json(folder)
    cases, patients = list_cases(folder, dataset_json), dataset_json.get("patients", {})
    labelled = any(case.label is not None for case in cases)
    channels = [dataset_json["channel_names"][str(index)] for index in range(len(dataset_json["channel_names"]))]
    sources: list[Source] = []
    for case in cases:
        whole = Source(tuple((image,) for image in case.images), case.identifier, patients.get(case.identifier, ""))
        if labelled:
            sources.append(replace(whole, modality=channels[0], label=case.label))
        else:
            sources += _split_channels(case, whole, channels)
    test = len(list((folder / "imagesTs").glob("*"))) if (folder / "imagesTs").is_dir() else 0
    left_out = (LeftOut("imagesTs", f"{test} file(s): test images stay test images"),) if test else ()
    keys = ("channel_names", "labels", "regions_class_order")
    labels = {key: dataset_json[key] for key in keys if key in dataset_json} if labelled else {}
    return Collection("nnU-Net raw folder" + (", labelled" if labelled else ""), tuple(sources), left_out, labels)


def _split_channels(case: Case, whole: Source, channels: Sequence[str]) -> list[Source]:
    return [
        replace(whole, images=(image,), modality=channel, place=image[0].name, subject=whole.subject or case.identifier)
        for image, channel in zip(whole.images, channels, strict=True)
    ]


def _files_collection(folder: Path, files: Sequence[Path], left_out: list[LeftOut], processes: int) -> Collection:
    """Any mixture of volume files and DICOM; imagesTr without dataset.json counts, its labelsTr does not."""
    labels = [file for file in files if {"labelsTr", "labelsTs"} & set(file.relative_to(folder).parts)]
    if labels:
        left_out.append(LeftOut("labelsTr", f"{len(labels)} file(s): label maps without a dataset.json"))
    files = [file for file in files if file not in set(labels)]
    volumes = [file for file in files if file_ending(file)]
    others = [file for file in files if not file_ending(file)]
    dicom = [file for file in others if is_dicom(file)]
    sources = [Source(((file,),), file.relative_to(folder).as_posix()) for file in volumes]
    series, more = dicom_sources(folder, dicom, processes)
    left_out += more + _no_images(folder, [file for file in others if file not in set(dicom)], volumes)
    kinds = [word for word, found in (("files", volumes), ("DICOM", dicom)) if found]
    return Collection(" and ".join(kinds) or "files", tuple(sources + series), tuple(left_out))


def _no_images(folder: Path, files: Sequence[Path], volumes: Sequence[Path]) -> list[LeftOut]:
    """One line for all files that are no images, one for each image of a format that is not read."""
    headers = {volume.with_suffix("") for volume in volumes if volume.suffix.lower() in (".mhd", ".nhdr")}
    found, rest = [], []
    for file in files:
        name = file.name.lower()
        if name.endswith(OTHER_IMAGES):
            place = file.relative_to(folder).as_posix()
            found.append(LeftOut(place, "a format that is not read; convert it to .nii.gz"))
        elif not (name.endswith(PARTNERS) and file.with_name(file.name.split(".raw")[0].split(".zraw")[0]) in headers):
            rest.append(file)
    if rest:
        kinds = Counter(file.suffix.lower() or "no ending" for file in rest)
        words = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(6))
        found.append(LeftOut(f"{len(rest)} file(s)", f"no images ({words})"))
    return found


def _walk(folder: Path, exclude: Sequence[str]) -> tuple[list[Path], list[LeftOut]]:
    """Visible files below a folder, sorted, links followed once; and a line per pattern that excluded some."""
    files: list[Path] = []
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        files += [Path(root, name) for name in sorted(names) if real not in seen and not name.startswith(".")]
        seen.add(real)
    kept, counts = [], Counter[str]()
    for file in files:
        pattern = _excluded(file.relative_to(folder).as_posix(), exclude)
        if pattern is not None:
            counts[f"--exclude {pattern}"] += 1
        elif file.is_file() or file.is_symlink():  # a link that leads nowhere is a scan that is missing
            kept.append(file)
        else:
            counts["not a regular file"] += 1
    return sorted(kept), [LeftOut(f"{count} file(s)", reason) for reason, count in counts.items()]


def _excluded(place: str, exclude: Sequence[str]) -> str | None:
    """The first pattern that matches the relative path or one of its parts."""
    words = [place, *place.split("/")]
    return next((pattern for pattern in exclude if any(fnmatch.fnmatch(word, pattern) for word in words)), None)


def _excluding(collection: Collection, exclude: Sequence[str]) -> Collection:
    """The same without the sources that a pattern matches."""
    hits = {source.place: _excluded(source.place, exclude) for source in collection.sources}
    out = [LeftOut(place, f"--exclude {pattern}") for place, pattern in hits.items() if pattern]
    sources = tuple(source for source in collection.sources if not hits[source.place])
    return replace(collection, sources=sources, left_out=(*collection.left_out, *out))
