"""DICOM files -> sources: series are sorted into stacks of parallel slices, one source per complete stack."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from nnssl.data.intake.collection import LeftOut, Source
from nnssl.data.intake.dicom_header import NOT_VOLUMES, Header, read_header
from nnssl.data.parallel import map_cases

CHUNK = 500  # files per job
GAP = 1.5  # times the usual distance of slices: one is missing
SHEAR = 1.0  # voxels by which a stack may lean over its whole length (a tilted gantry leans more)


def dicom_sources(folder: Path, files: Sequence[Path], processes: int) -> tuple[list[Source], list[LeftOut]]:
    """Volumes among DICOM files, in the order of their places, and what is left out.

    Files are grouped by the series that their headers name, wherever they lie, then by size, pixel spacing and
    orientation, and sorted by position. Positions that repeat are a time series: one source per time.
    """
    jobs = {str(start): (folder, files[start : start + CHUNK]) for start in range(0, len(files), CHUNK)}
    outcomes = map_cases(read_headers, jobs, processes=processes, title="DICOM headers") if jobs else None
    if outcomes is None:
        return [], []
    headers: list[Header] = []
    left_out = [LeftOut(f"DICOM files from number {key}", text, True) for key, text in outcomes.failures.items()]
    for key in jobs:
        found, bad = outcomes.results.get(key, ([], []))
        headers += found
        left_out += bad
    series: dict[str, dict[str, Header]] = defaultdict(dict)
    for header in headers:
        series[header.series].setdefault(header.instance, header)  # a file that was exported twice counts once
    sources: list[Source] = []
    for slices in sorted(series.values(), key=lambda group: str(next(iter(group.values())).path)):
        found, bad = _series_sources(folder, list(slices.values()))
        sources += found
        left_out += bad
    return sources, left_out


def read_headers(folder: Path, files: Sequence[Path]) -> tuple[list[Header], list[LeftOut]]:
    """Headers of some files, and those that hold no scan."""
    headers, left_out = [], []
    for file in files:
        place = file.relative_to(folder).as_posix()
        try:
            header = read_header(file)
        except (OSError, ValueError) as error:
            left_out.append(LeftOut(place, " ".join(str(error).split()), damaged=True))
            continue
        if isinstance(header, str):
            left_out.append(LeftOut(place, f"{header}, not a scan"))
        else:
            headers.append(header)
    return headers, left_out


def _series_sources(folder: Path, slices: list[Header]) -> tuple[list[Source], list[LeftOut]]:
    place = slices[0].path.parent.relative_to(folder).as_posix()
    place = f"{place} ({len(slices)} DICOM file{'s' if len(slices) > 1 else ''})"
    reason = _no_volume(slices[0])
    if reason:
        return [], [LeftOut(place, reason)]
    stacks: dict[tuple[object, ...], list[Header]] = defaultdict(list)
    for number, header in enumerate(slices):
        alone = (number,) if header.size[2] > 1 else ()  # a multi-frame file is a volume
        stacks[(header.size, _rounded(header.spacing_mm[:2], 3), _rounded(header.axes, 2), *alone)].append(header)
    sources: list[Source] = []
    left_out: list[LeftOut] = []
    for number, stack in enumerate(stacks.values()):
        name = place if len(stacks) == 1 else f"{place} stack {number + 1}"
        found = _stack_sources(stack, name)
        if isinstance(found, LeftOut):
            left_out.append(found)
        else:
            sources += found
    return sources, left_out


def _no_volume(header: Header) -> str:
    """Why a series is no volume, "" for one that may be."""
    if header.modality in NOT_VOLUMES:
        return f"{NOT_VOLUMES[header.modality]}, not a volume"
    if "LOCALIZER" in header.image_type or "SCOUT" in header.image_type:
        return "a localiser"
    if header.components > 1:
        return "colour images"
    if "MOSAIC" in header.image_type:
        return "slices tiled into one picture (mosaic); convert it with dcm2niix"
    if header.size[2] > 1 and header.times > 1:
        return f"a multi-frame file of {header.times} times; convert it with dcm2niix"
    return ""


def _stack_sources(stack: list[Header], place: str) -> list[Source] | LeftOut:
    """One source per time of slices that lie behind each other."""
    first = stack[0]
    whole = Source(((first.path,),), place, first.patient, first.study, first.modality)
    if first.size[2] > 1:
        return [whole]
    if len(stack) == 1:
        return LeftOut(place, "a single slice")
    if first.axes is None or any(header.position is None for header in stack):
        return LeftOut(place, "its slices do not say where they lie (secondary capture?)")
    frames = _frames(stack)
    if isinstance(frames, str):
        return LeftOut(place, frames, damaged=True)
    distance = _slice_distance(frames[0])
    if isinstance(distance, LeftOut):
        return replace(distance, place=place)
    spacing = (*first.spacing_mm[:2], distance)
    scaled = any(header.slope != round(header.slope) for header in stack)
    return [
        replace(
            whole,
            images=(tuple(header.path for header in frame),),
            spacing_mm=spacing,
            float_voxels=scaled,
            place=place if len(frames) == 1 else f"{place} time {number + 1}",
        )
        for number, frame in enumerate(frames)
    ]


def _frames(stack: list[Header]) -> list[list[Header]] | str:
    """Slices in order along their normal, one list per time; words where the times have different numbers of slices."""
    places: dict[float, list[Header]] = defaultdict(list)
    for header in stack:
        places[round(_depth(header), 2)].append(header)
    repeats = {len(headers) for headers in places.values()}
    if len(repeats) > 1:
        return f"slices missing: {len(stack)} slices at {len(places)} places, {min(repeats)} to {max(repeats)} at each"
    ordered = [sorted(places[depth], key=lambda header: header.order) for depth in sorted(places)]
    return [list(frame) for frame in zip(*ordered, strict=True)]


def _slice_distance(frame: list[Header]) -> float | LeftOut:
    """Distance of neighbouring slices, mm, or why the stack is not a grid."""
    if len(frame) < 2:
        return LeftOut("", f"a single slice at {len(frame)} place")
    steps = np.diff([_depth(header) for header in frame])
    usual = float(np.median(steps))
    if steps.max() > GAP * usual:
        return LeftOut("", f"slices missing: a gap of {steps.max():.3g} mm where slices are {usual:.3g} mm apart", True)
    move = np.array(frame[-1].position) - np.array(frame[0].position)
    lean = float(np.linalg.norm(move - _normal(frame[0]) * (move @ _normal(frame[0]))))
    if lean > SHEAR * min(frame[0].spacing_mm[:2]):
        return LeftOut("", f"tilted gantry: the stack leans by {lean:.3g} mm; convert it with dcm2niix")
    return usual


def _depth(header: Header) -> float:
    """Position along the normal of the slices, mm."""
    return float(np.dot(np.array(header.position), _normal(header)))


def _normal(header: Header) -> np.ndarray:
    axes = np.array(header.axes)
    return np.cross(axes[:3], axes[3:])


def _rounded(values: Sequence[float] | None, digits: int) -> tuple[float, ...]:
    return tuple(round(value, digits) + 0.0 for value in values or ())
