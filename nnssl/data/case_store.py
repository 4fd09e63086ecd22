"""Stored cases: three files that appear together, whole or not at all, and the key of what they were made from.

nnU-Net's layout: `CASE.b2nd` (C, X, Y, Z), `CASE_seg.b2nd` (1, X, Y, Z) int16 and `CASE.pkl`. They are written into a
folder of their own under `.partial` and moved; `CASE.b2nd`, which holds the key, goes first and comes last, so that a
case that is there is complete whenever the process is killed.
"""

import pickle
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import blosc2
import numpy as np
from numpy.typing import NDArray

ENDINGS = (".pkl", "_seg.b2nd", ".b2nd")  # in the order in which they are published
PARTIAL = ".partial"
_KEY = "nnssl_key"
_CODEC, _LEVEL = blosc2.Codec.LZ4HC, 5  # nnU-Net's
_CHUNK, _BLOCK = (
    (64, 64, 64),
    (16, 32, 64),
)  # voxels that are stored and decompressed together: volumes are read in half
# the time of nnU-Net's layout, which fits one crop size to caches; boxes of 96^3 or 70^3 in two thirds of it
_TRIAL = 32  # voxels per side of the sample that decides on the byte shuffle


class StoredCase(NamedTuple):
    """What is stored of one case."""

    images: NDArray[Any]  # (C, X, Y, Z), float32 or float16
    labels: NDArray[np.int16]  # (1, X, Y, Z)
    properties: dict[str, Any]  # nnU-Net's


def write_case(folder: Path, identifier: str, case: StoredCase, *, key: str) -> None:
    """Write the files of a case beside the stored ones and move them in place.

    Args:
        folder: of the stored cases; it exists.
        identifier: of the case.
        case: what to store.
        key: of plan and source files, see `stored_key`.
    """
    partial = folder / PARTIAL
    partial.mkdir(exist_ok=True)
    own = Path(tempfile.mkdtemp(dir=partial, prefix=f"{identifier}."))
    try:
        (own / f"{identifier}.pkl").write_bytes(pickle.dumps(case.properties, protocol=4))
        _write_array(own / f"{identifier}_seg.b2nd", case.labels)
        _write_array(own / f"{identifier}.b2nd", case.images, key)
        (folder / f"{identifier}.b2nd").unlink(missing_ok=True)
        for ending in ENDINGS:
            (own / f"{identifier}{ending}").replace(folder / f"{identifier}{ending}")
    finally:
        shutil.rmtree(own, ignore_errors=True)


def stored_key(folder: Path, identifier: str) -> str | None:
    """The key a complete stored case was written with; None where there is none, or where it cannot be read."""
    if not all((folder / f"{identifier}{ending}").is_file() for ending in ENDINGS):
        return None
    try:
        array = blosc2.open(str(folder / f"{identifier}.b2nd"), mode="r")  # kept: its metadata die with it
        return str(array.schunk.vlmeta[_KEY])
    except (KeyError, RuntimeError, ValueError, OSError):
        return None


def remove_case(folder: Path, identifier: str) -> None:
    """Remove the files of a case, the one that makes it complete first."""
    for ending in reversed(ENDINGS):
        (folder / f"{identifier}{ending}").unlink(missing_ok=True)


def stored_identifiers(folder: Path) -> set[str]:
    """Cases of which at least one file is there."""
    found = set()
    for path in folder.iterdir() if folder.is_dir() else ():
        ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), None)
        if ending is not None:
            found.add(path.name.removesuffix(ending))
    return found


def remove_partial(folder: Path, identifiers: Iterable[str]) -> None:
    """Remove what killed processes left of these cases; others may be in work elsewhere."""
    partial, own = folder / PARTIAL, set(identifiers)
    if not partial.is_dir():
        return
    for path in partial.iterdir():
        if path.name.rpartition(".")[0] in own:
            shutil.rmtree(path, ignore_errors=True)
    if not any(partial.iterdir()):
        partial.rmdir()


def _write_array(path: Path, values: NDArray[Any], key: str | None = None) -> None:
    chunks = (1, *(min(side, full) for side, full in zip(_CHUNK, values.shape[1:], strict=True)))
    blocks = (1, *(min(side, full) for side, full in zip(_BLOCK, values.shape[1:], strict=True)))
    compression = {"codec": _CODEC, "clevel": _LEVEL, "filters": [_filter(values)], "nthreads": 1}
    array = blosc2.asarray(
        np.ascontiguousarray(values), urlpath=str(path), chunks=chunks, blocks=blocks, cparams=compression
    )
    if key is not None:
        array.schunk.vlmeta[_KEY] = key


def _filter(values: NDArray[Any]) -> blosc2.Filter:
    """Byte shuffle or none, whichever packs the middle of the array better (resampled values differ from raw ones)."""
    middle = tuple(slice(max(0, side // 2 - _TRIAL // 2), side // 2 + _TRIAL // 2 + 1) for side in values.shape)
    sample = np.ascontiguousarray(values[middle])
    sizes = {}
    for choice in (blosc2.Filter.NOFILTER, blosc2.Filter.SHUFFLE):
        compression = {"codec": _CODEC, "clevel": _LEVEL, "filters": [choice], "nthreads": 1}
        sizes[choice] = blosc2.asarray(sample, cparams=compression).schunk.cbytes
    return min(sizes, key=lambda choice: sizes[choice])
