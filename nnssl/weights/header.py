"""What an encoder file says about itself: how and on what it was trained, without subject names or paths."""

import hashlib
import json
import math
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from nnssl import __version__
from nnssl.config import from_dict, to_dict
from nnssl.encoders.base import IntensityRange

HASH_LENGTH = 32  # hexadecimal digits = 128 bits
ABSOLUTE_PATH = re.compile(r"""^(/|~/|[A-Za-z]:[\\/])\S|[\s"'=(](/|~/|[A-Za-z]:[\\/])[\w.-]+[\\/]""")


@dataclass(frozen=True)
class DataRecord:
    """The cases of a pretraining as salted hashes: membership can be tested, names cannot be read back.

    Someone who guesses a case name can test the guess, as fine-tuning does; the salt only prevents tables
    computed beforehand and comparison of two files.
    """

    salt: str
    case_hashes: tuple[str, ...]  # sorted, so that their order tells nothing
    cases: int
    data_hash: str  # of the sorted list of all cases

    def __post_init__(self) -> None:
        if self.cases != len(self.case_hashes):
            raise ValueError(f"data record counts {self.cases} cases but holds {len(self.case_hashes)} hashes")


@dataclass(frozen=True)
class EncoderHeader:
    """Facts that travel with the weights of an encoder."""

    encoder: str  # a name of nnssl.encoders.ENCODERS
    native_crop: tuple[int, int, int]  # voxels, X Y Z
    intensity: IntensityRange
    spacing_mm: tuple[float, float, float] | None = None  # None: trained without resampling to one spacing
    orientation: str = "RAS"
    axes: str = "XYZ"
    task: str = ""  # pretext task, e.g. "threedino"
    steps: int = 0  # optimiser steps done
    plan: dict[str, Any] = field(default_factory=dict)  # the settings of the pretraining
    encoder_options: dict[str, Any] = field(default_factory=dict)  # what differs from the line of ENCODERS
    package_version: str = __version__
    data: DataRecord | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w{1,80}", self.encoder):
            raise ValueError(f"its encoder {self.encoder[:80]!r} is no name of letters, digits and underscores")
        for name in ("plan", "encoder_options"):
            if not isinstance(getattr(self, name), dict):
                raise ValueError(f"its {name} is {type(getattr(self, name)).__name__}, not a dictionary")
        if self.spacing_mm is not None and not all(0 < side < math.inf for side in self.spacing_mm):
            raise ValueError(f"its spacing {self.spacing_mm} is not three numbers of mm above 0")


def case_hash(salt: str, dataset: str, case: str) -> str:
    """Salted SHA-256 of a case (128 bits as 32 hexadecimal digits); `dataset` is the DatasetNNN_Name folder."""
    return _digest(salt, f"{dataset}/{case}")


def record_cases(cases: Sequence[tuple[str, str]]) -> DataRecord:
    """A record of (data set, case) pairs under a fresh random salt; repeated pairs count once."""
    salt = secrets.token_hex(16)
    names = sorted({f"{dataset}/{case}" for dataset, case in cases})
    hashes = tuple(sorted(_digest(salt, name) for name in names))
    return DataRecord(salt, hashes, len(names), _digest(salt, "\n".join(names)))


def seen_cases(record: DataRecord, dataset: str, cases: Iterable[str]) -> list[str]:
    """Those of `cases` of one data set that the pretraining has seen, in the order given."""
    known = set(record.case_hashes)
    return [case for case in cases if case_hash(record.salt, dataset, case) in known]


def header_to_text(header: EncoderHeader) -> str:
    """The header as JSON; an absolute path anywhere in it is refused."""
    values = to_dict(header)
    for text in _texts(values):
        if ABSOLUTE_PATH.search(text):
            raise ValueError(
                f"saving an encoder: the header holds an absolute path ({text!r}); keep names, not paths, in its plan"
            )
    return json.dumps(values)


def header_from_text(text: str) -> EncoderHeader:
    """Read a header; settings of a newer version that are unknown here are left out."""
    try:
        values = json.loads(text)
        known = {entry.name for entry in fields(EncoderHeader)}
        return from_dict(EncoderHeader, {key: value for key, value in values.items() if key in known})
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the header is damaged ({error}); export the encoder again") from error


def _digest(salt: str, text: str) -> str:
    return hashlib.sha256(f"{salt}\n{text}".encode()).hexdigest()[:HASH_LENGTH]


def _texts(values: Any) -> Iterator[str]:
    """Every string in nested JSON values, keys included."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, Mapping):
        for key, value in values.items():
            yield str(key)
            yield from _texts(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _texts(value)
