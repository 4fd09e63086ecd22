"""A raw nnU-Net folder of neutrally named cases: files are linked where they lie, all else is written once.

Links instead of absolute paths in dataset.json: planning and training copy dataset.json, and paths name people.
"""

import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import SimpleITK

from nnssl.data.intake.choose import Taken
from nnssl.data.intake.collection import Collection, LeftOut, Source, file_ending
from nnssl.data.intake.examine import Volume, bytes_to_decode, part_of, read_source, strip
from nnssl.data.parallel import Terms, map_cases
from nnssl.dataset_conversion.raw_dataset import write_dataset_json
from nnssl.dataset_conversion.scan_check import read_scan
from nnssl.paths import atomic_write, save_json

LINKED = (".nii.gz", ".nii", ".nrrd", ".mha")  # whole in one file; .mhd and .nhdr name a second one beside them
WRITTEN = ".nii.gz"
SOURCES_FILE = "nnssl_sources.json"  # stays in the raw folder: nothing reads it but people


def write_raw_folder(folder: Path, collection: Collection, taken: Taken, processes: int) -> dict[str, str]:
    """Write images, labels, masks, dataset.json and the list of sources.

    `dataset.json` gets a `dataset` section (nnU-Net's own, with paths relative to the folder) only where file endings
    differ, and `patients` where a subject has several cases, so that cross-validation keeps them together.

    Returns:
        Cases that could not be written, with the reason; they are not in the data set.
    """
    ending = common_ending(taken)
    (folder / "imagesTr").mkdir(parents=True)
    files = {name: _image_names(name, volume, ending) for name, volume in taken.cases.items()}
    failures = _write_images(folder, taken.cases, files, processes)
    failures |= _write_labels(folder, taken.cases, ending, processes)
    names = [name for name in taken.cases if name not in failures]
    for name in failures:
        for file in files[name]:
            (folder / "imagesTr" / file).unlink(missing_ok=True)
    for name in names:
        _link_masks(folder, name, taken.cases[name].source)
    if names:
        _write_description(folder, collection, taken, {name: files[name] for name in names}, ending)
        sources = {name: _where(taken.cases[name], taken.subjects[name]) for name in names}
        left_out = [{"place": out.place, "reason": out.reason, "damaged": out.damaged} for out in taken.left_out]
        save_json({"kind": collection.kind, "cases": sources, "left_out": left_out}, folder / SOURCES_FILE)
    return failures


def common_ending(taken: Taken) -> str:
    """The ending of all linked files if it is one, else .nii.gz: that of labels and of what is written."""
    endings = {
        file_ending(file)
        for volume in taken.cases.values()
        for (file, *_) in volume.source.images
        if _is_linked(volume, file)
    }
    (only,) = endings if len(endings) == 1 else (WRITTEN,)
    return only or WRITTEN


def _is_linked(volume: Volume, file: Path) -> bool:
    return volume.part is None and file_ending(file) in LINKED


def _image_names(name: str, volume: Volume, ending: str) -> list[str]:
    """File name per channel in imagesTr."""
    files = [files[0] for files in volume.source.images]
    own = [file_ending(file) if _is_linked(volume, file) else ending for file in files]
    return [f"{name}_{channel:04d}{own[channel]}" for channel in range(len(files))]


def _write_images(
    folder: Path, cases: dict[str, Volume], files: dict[str, list[str]], processes: int
) -> dict[str, str]:
    """Link or write every image; a 4D file is decoded once for all its parts. Returns failures by case."""
    jobs: dict[str, dict[str, tuple[Volume, list[Path]]]] = defaultdict(dict)  # first file of the source -> case ->
    for name, volume in cases.items():
        targets = [folder / "imagesTr" / file for file in files[name]]
        originals = [channel[0] for channel in volume.source.images]
        if all(_is_linked(volume, original) for original in originals):
            for original, target in zip(originals, targets, strict=True):
                link(original, target)
        else:
            jobs[str(originals[0])][name] = (volume, targets)
    if not jobs:
        return {}
    calls: dict[str, tuple[Any, ...]] = {key: (list(parts.values()),) for key, parts in jobs.items()}
    terms = Terms(lambda key: bytes_to_decode(calls[key][0][0][0].source))
    outcomes = map_cases(write_volumes, calls, processes=processes, title="write", terms=terms)
    return {name: text for key, text in outcomes.failures.items() for name in jobs[key]}


def write_volumes(parts: list[tuple[Volume, list[Path]]]) -> None:
    """Write the parts of one source to their files, without metadata."""
    source = parts[0][0].source
    for channel in range(len(source.images)):
        image = read_source(source, channel)
        for volume, targets in parts:
            write_image(part_of(image, volume.part or 0), targets[channel])


def write_image(image: SimpleITK.Image, path: Path) -> None:
    """Write whole or not at all, compressed, with geometry and voxels and nothing else."""
    with atomic_write(path) as temporary:
        whole = temporary.with_name(temporary.name + path.name[path.name.index(".") :])
        try:
            SimpleITK.WriteImage(strip(image), str(whole), useCompression=True, compressionLevel=1)
            whole.replace(temporary)
        finally:
            whole.unlink(missing_ok=True)


def link(source: Path, target: Path) -> None:
    """A link to the file itself; a copy where the file system has no links."""
    try:
        target.symlink_to(source.absolute())
    except (OSError, NotImplementedError):
        shutil.copyfile(source, target)


def _write_labels(folder: Path, cases: dict[str, Volume], ending: str, processes: int) -> dict[str, str]:
    """Label maps anew, because planning copies them and their headers may name people. Returns failures by case."""
    labels = {name: volume.source.label for name, volume in cases.items() if volume.source.label is not None}
    if not labels:
        return {}
    (folder / "labelsTr").mkdir()
    calls: dict[str, tuple[Any, ...]] = {
        name: (label, folder / "labelsTr" / f"{name}{ending}") for name, label in labels.items()
    }
    return map_cases(write_label, calls, processes=processes, title="labels").failures


def write_label(source: Path, target: Path) -> None:
    """Write one label map without metadata."""
    write_image(read_scan(source), target)


def _link_masks(folder: Path, name: str, source: Source) -> None:
    for kind, mask in source.masks.items():
        (folder / f"masks_{kind}").mkdir(exist_ok=True)
        link(mask, folder / f"masks_{kind}" / f"{name}{file_ending(mask) or WRITTEN}")


def _write_description(
    folder: Path, collection: Collection, taken: Taken, files: dict[str, list[str]], ending: str
) -> None:
    """dataset.json; see `write_raw_folder`."""
    extra: dict[str, Any] = {"file_ending": ending}
    if len(set(taken.subjects.values())) < len(taken.subjects):
        extra["patients"] = {name: taken.subjects[name] for name in files}
    if any(not file.endswith(ending) for names in files.values() for file in names):
        extra["dataset"] = {name: _entry(folder, name, images, ending) for name, images in files.items()}
    channels = collection.labels.get("channel_names", {"0": taken.channel})
    if "regions_class_order" in collection.labels:
        extra["regions_class_order"] = collection.labels["regions_class_order"]
    write_dataset_json(folder, channels, collection.labels.get("labels", {"background": 0}), len(files), extra=extra)


def _entry(folder: Path, name: str, images: list[str], ending: str) -> dict[str, Any]:
    label = f"labelsTr/{name}{ending}"
    entry: dict[str, Any] = {"images": [f"imagesTr/{image}" for image in images]}
    return entry | ({"label": label} if (folder / label).is_file() else {})


def _where(volume: Volume, subject: str) -> dict[str, Any]:
    """Where a case came from: for people, in the raw folder only."""
    source = volume.source
    files = [str(file) for channel in source.images for file in channel]
    masks = {kind: str(mask) for kind, mask in source.masks.items()}
    return {
        "files": files,
        "part": volume.part,
        "subject": subject,
        "modality": source.modality,
        "shape": list(volume.shape),
        "spacing_mm": list(volume.spacing_mm),
        "content": volume.content,
        "label": str(source.label) if source.label else None,
        "masks": masks,
    }


def written_sources(folder: Path, taken: Taken) -> list[Source]:
    """The cases of a written folder as sources with neutral names and paths, for pretrain_data.json."""
    found = []
    for path in sorted((folder / "imagesTr").iterdir()):
        name = path.name[: -len(file_ending(path) or "")].rsplit("_", 1)[0]
        volume = taken.cases[name]
        masks = {
            kind: folder / f"masks_{kind}" / f"{name}{file_ending(mask) or WRITTEN}"
            for kind, mask in volume.source.masks.items()
        }
        modality = volume.source.modality or taken.channel
        found.append(Source(((path,),), name, taken.subjects[name], "ses-1", modality, masks=masks))
    return found


def damaged(failures: dict[str, str], taken: Taken) -> list[LeftOut]:
    """Cases that could not be written as lines of the table."""
    return [LeftOut(taken.cases[name].source.place, text, damaged=True) for name, text in failures.items()]
