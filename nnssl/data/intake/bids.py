"""A BIDS tree -> Collection: subject, session and modality are read from the file names (BIDS 1.10)."""

import re
from collections.abc import Sequence
from pathlib import Path

from nnssl.data.intake.collection import Collection, LeftOut, Source, file_ending

NO_SCANS = {
    "dseg": "a label map",
    "probseg": "a label map",
    "mask": "a mask",
    "defacemask": "a mask",
    "phasediff": "a field map",
    "phase": "a phase image",
    "phase1": "a field map",
    "phase2": "a field map",
    "fieldmap": "a field map",
    "part-phase": "a phase image",
}
BESIDE = ("derivatives", "sourcedata", "code", "stimuli")
ENDINGS = (".nii", ".nii.gz")


def is_bids(folder: Path) -> bool:
    """Whether a folder is the root of a BIDS tree: its description is there, or sub-* folders with data folders."""
    if (folder / "dataset_description.json").is_file():
        return True
    return any((sub / "anat").is_dir() or any(sub.glob("ses-*/anat")) for sub in folder.glob("sub-*"))


def bids_collection(folder: Path, files: Sequence[Path], left_out: list[LeftOut]) -> Collection:
    """Raw images of all subjects and sessions; derivatives, masks and field maps are left out with a line each."""
    sources: list[Source] = []
    beside = dict.fromkeys(BESIDE, 0)
    for file in files:
        place = file.relative_to(folder)
        if place.parts[0] in beside:
            beside[place.parts[0]] += 1
        elif file_ending(file) is not None:
            found = _source(file, place)
            if isinstance(found, Source):
                sources.append(found)
            else:
                left_out.append(found)
    rest = [file for file in files if file_ending(file) is None and file.relative_to(folder).parts[0] not in beside]
    left_out += [LeftOut(name, f"{count} file(s) beside the raw data") for name, count in beside.items() if count]
    if rest:
        left_out.append(LeftOut(f"{len(rest)} file(s)", "no images (tables and descriptions of BIDS)"))
    return Collection("BIDS", tuple(sources), tuple(left_out))


def _source(file: Path, place: Path) -> Source | LeftOut:
    name = file.name[: -len(file_ending(file) or "")]
    suffix = name.rsplit("_", 1)[-1]
    subject = re.search(r"(?:^|/)(sub-[a-zA-Z0-9+]+)", place.as_posix())
    if subject is None or file_ending(file) not in ENDINGS:
        return LeftOut(place.as_posix(), "no raw image of BIDS: expected sub-LABEL/.../sub-LABEL_..._SUFFIX.nii.gz")
    for word in (suffix, *name.split("_")):
        if word in NO_SCANS:
            return LeftOut(place.as_posix(), f"{NO_SCANS[word]}, not a scan")
    session = re.search(r"(?:^|[/_])(ses-[a-zA-Z0-9+]+)", place.as_posix())
    return Source(((file,),), place.as_posix(), subject.group(1), session.group(1) if session else "", suffix)
