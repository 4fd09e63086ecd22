"""State of a pretraining run as one file: written whole or not at all, read without unpickling objects."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from nnssl.paths import atomic_write

VERSION = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values; the earlier file stays unharmed until the new one is complete.

    Raises:
        OSError: the disk is full or not writable; the message names the file and what to do.
    """
    try:
        with atomic_write(path) as temporary, temporary.open("wb") as stream:
            write_state({"version": VERSION, **state}, stream)
    except OSError as error:
        if str(path) in str(error):
            raise
        raise OSError(error.errno, f"writing {path}: {error.strerror}; the earlier file is unchanged") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, onto the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, of another version, or holds objects other than tensors and plain values.
    """
    if not path.is_file():
        raise FileNotFoundError(f"reading checkpoint {path}: no such file; start the run without --c")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise ValueError(f"reading checkpoint {path}: it is damaged or foreign ({reason}); start a new run") from error
    if not isinstance(state, dict) or state.get("version") != VERSION:
        found = state.get("version") if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"reading checkpoint {path}: version {found}, expected {VERSION}; start a new run")
    return state


def write_state(state: dict[str, Any], stream: BinaryIO) -> None:
    """torch.save, but a full disk is reported as the OSError that it is."""
    try:
        torch.save(state, stream)
    except RuntimeError as error:
        raise next((cause for cause in _causes(error) if isinstance(cause, OSError)), error) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from or during; torch hides a failed write behind an error of its own."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__
