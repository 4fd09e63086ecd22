"""Lists of held-out cases: which stored cases a training must not see."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from nnssl.paths import dataset_id


def read_exclusions(files: Iterable[Path]) -> list[str]:
    """Lines of text files, one case each; empty lines and what follows a # are left out.

    A line is `DATASET/CASE` or `CASE` (of any data set); DATASET is a number or a folder's name, and * ? [] in CASE
    stand for several cases: `4/hippocampus_001`, `Dataset202_UnlabelledMR/STS_*`, `patient_0042`.

    Raises:
        FileNotFoundError: no such file.
    """
    lines = []
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f"-exclude {path}: no such file; give a text file with one case per line")
        lines += [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line]


def held_out_cases(exclusions: Sequence[str], stored: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """Cases of each data set that the lines of `read_exclusions` name; lines for other data sets do not matter.

    Args:
        exclusions: lines.
        stored: cases of every data set of the run.

    Raises:
        ValueError: a line names no stored case: a mistyped name must not let a held-out case in.
    """
    held_out: dict[str, set[str]] = {dataset: set() for dataset in stored}
    unmatched = []
    for line in exclusions:
        owner, _, pattern = line.rpartition("/")
        own = [dataset for dataset in stored if owner in ("", dataset) or _is_number(owner, dataset)]
        found = [(dataset, case) for dataset in own for case in stored[dataset] if fnmatchcase(case, pattern)]
        for dataset, case in found:
            held_out[dataset].add(case)
        if own and not found:
            unmatched.append(line)
    if unmatched:
        raise ValueError(
            f"-exclude: {len(unmatched)} line(s) name no stored case of {', '.join(stored)}: "
            f"{', '.join(unmatched[:5])}; correct or delete them (CASE, or DATASET/CASE for one data set alone)"
        )
    return held_out


def _is_number(owner: str, dataset: str) -> bool:
    return owner.isdigit() and int(owner) == dataset_id(dataset)
