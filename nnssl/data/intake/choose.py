"""Which sound volumes are taken: modality, size, no copy of another; and the neutral name of every case."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from nnssl.data.intake.collection import Collection, LeftOut, Source, family
from nnssl.data.intake.examine import Volume, bytes_to_decode, examine
from nnssl.data.parallel import Terms, map_cases

MIN_SLICES = 5  # below are localisers and test shots; the 3DINO paper pretrains on volumes with more than 24 slices
MIXED = "scan"  # channel name where the modalities differ or nobody says them


@dataclass(frozen=True)
class Taken:
    """The cases of a new data set by name, the name of their channel, and everything that is not in it."""

    cases: dict[str, Volume]
    subjects: dict[str, str]  # case -> neutral name of its subject
    channel: str
    why: str  # where the name of the channel comes from
    left_out: tuple[LeftOut, ...]


def examine_all(collection: Collection, processes: int) -> tuple[list[Volume], list[LeftOut]]:
    """Decode every source once; a damaged one costs only itself."""
    labels = dict(collection.labels)
    jobs: dict[str, tuple[Any, ...]] = {str(index): (source, labels) for index, source in enumerate(collection.sources)}
    terms = Terms(lambda key: bytes_to_decode(collection.sources[int(key)]))
    outcomes = map_cases(examine, jobs, processes=processes, title="examine", terms=terms)
    volumes: list[Volume] = []
    left_out = list(collection.left_out)
    for key, source in zip(jobs, collection.sources, strict=True):
        if key in outcomes.failures:
            left_out.append(LeftOut(source.place, _without_paths(outcomes.failures[key], source), damaged=True))
        for found in outcomes.results.get(key, ()):
            if isinstance(found, LeftOut):
                left_out.append(found)
            else:
                volumes.append(found)
    return volumes, left_out


def choose(
    volumes: Sequence[Volume], left_out: Iterable[LeftOut], *, name: str, modality: str = "", min_slices: int
) -> Taken:
    """The volumes that are wanted, under neutral names `NAME_0001`, or `NAME_0001_2` for the second of a subject.

    Args:
        modality: what the scans are; volumes whose source says another one are left out. "": what the sources say.
        min_slices: voxels along the shortest side, at least.
    """
    out = list(left_out)
    taken: list[Volume] = []
    first: dict[str, str] = {}
    for volume in volumes:
        reason = _unwanted(volume, modality, min_slices)
        if not reason and volume.content in first:
            reason = f"the same voxels as {first[volume.content]}"
        if reason:
            out.append(LeftOut(place_of(volume), reason))
        else:
            first[volume.content] = place_of(volume)
            taken.append(volume)
    names, subjects = _names(taken, name)
    channel, why = _channel(taken, modality)
    return Taken(dict(zip(names, taken, strict=True)), subjects, channel, why, tuple(out))


def place_of(volume: Volume) -> str:
    """Where a volume lies, for the table."""
    return volume.source.place if volume.part is None else f"{volume.source.place} part {volume.part + 1}"


def _unwanted(volume: Volume, modality: str, min_slices: int) -> str:
    says = family(volume.source.modality)
    if modality and says and says.casefold() != family(modality).casefold():
        return f"modality {volume.source.modality}, wanted is {modality}"
    if min(volume.shape) < min_slices:
        return f"{min(volume.shape)} voxels along its shortest side, --min_slices {min_slices}"
    return ""


def _names(volumes: Sequence[Volume], name: str) -> tuple[list[str], dict[str, str]]:
    """Neutral case names, in order, and case -> subject; a source without a subject is one of its own."""
    keys = [volume.source.subject or f"/{volume.source.place}" for volume in volumes]
    number = {key: index + 1 for index, key in enumerate(dict.fromkeys(keys))}
    total, seen = Counter(keys), Counter[str]()
    names, subjects = [], {}
    for key in keys:
        seen[key] += 1
        subject = f"{name}_{number[key]:04d}"
        names.append(subject if total[key] == 1 else f"{subject}_{seen[key]}")
        subjects[names[-1]] = subject
    return names, subjects


def _channel(volumes: Sequence[Volume], modality: str) -> tuple[str, str]:
    """Channel name of the data set ("CT" means Hounsfield units to nnU-Net), and why."""
    if modality:
        return family(modality), "--modality"
    said = {family(volume.source.modality) for volume in volumes}
    if said == {""}:
        air = sum(volume.hounsfield for volume in volumes)
        if air == len(volumes):
            return "CT", "every volume has air in Hounsfield units; --modality says otherwise"
        return MIXED, f"the files do not say ({air} of {len(volumes)} look like CT); --modality CT or MRI says it"
    if len(said) == 1:
        return said.pop(), "what the sources say"
    words = ", ".join(sorted(word or "unknown" for word in said))
    return MIXED, f"the sources say {words}; import them apart with --modality for windows in Hounsfield units"


def _without_paths(text: str, source: Source) -> str:
    """A reason without the absolute paths, which stand in the first column."""
    files = [file for channel in source.images for file in channel]
    for file in [*files[:10], *([source.label] if source.label else [])]:
        text = text.removeprefix(f"{file}: ").replace(f"{file.parent}/", "")
    return text
