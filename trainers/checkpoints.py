"""State of a pretraining run as files: written whole or not at all, checksummed, read without unpickling objects."""

import logging
import os
import pickle
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from nnssl.paths import atomic_write

VERSION = 2
LATEST, PREVIOUS = "checkpoint_latest.pt", "checkpoint_previous.pt"
_log = logging.getLogger(__name__)


def save_latest(folder: Path, state: dict[str, Any], *, milestone: bool = False) -> None:
    """Write checkpoint_latest.pt; the one before becomes checkpoint_previous.pt, a milestone keeps a name of its own.

    Args:
        state: with "steps_done", after which the milestone checkpoint_step00025000.pt is named.

    Raises:
        OSError: the disk is full or not writable; latest and previous are as they were.
    """
    latest = folder / LATEST
    save_checkpoint(latest, state, earlier=folder / PREVIOUS)
    if milestone:
        _name_too(latest, folder / f"checkpoint_step{state['steps_done']:08d}.pt")


def load_latest(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The state to continue from and its file: the latest, or where that is damaged the previous, with a warning.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        ValueError: every checkpoint is damaged.
    """
    found = [folder / name for name in (LATEST, PREVIOUS) if (folder / name).is_file()]
    if not found:
        raise FileNotFoundError(f"reading checkpoint {folder / LATEST}: no such file; start the run without --c")
    for path in found[:-1]:
        try:
            return path, load_checkpoint(path)
        except ValueError as error:
            _log.warning("%s; falling back to %s", str(error).partition("; ")[0], found[-1].name)
    state = load_checkpoint(found[-1])
    if found[-1].name == PREVIOUS:
        _log.warning("continuing from %s, after %d steps", PREVIOUS, state["steps_done"])
    return found[-1], state


def has_checkpoint(folder: Path) -> bool:
    """Whether there is something to continue from."""
    return any((folder / name).is_file() for name in (LATEST, PREVIOUS))


def remove_leftovers(folder: Path) -> None:
    """Delete the unfinished files of a process that was killed while it wrote a checkpoint."""
    for path in folder.glob(f".{LATEST}.*"):
        path.unlink(missing_ok=True)


def save_checkpoint(path: Path, state: dict[str, Any], *, earlier: Path | None = None) -> None:
    """Write tensors and plain values; the earlier file stays unharmed until the new one is complete.

    Args:
        earlier: name under which the file that is replaced stays.

    Raises:
        OSError: the disk is full or not writable; the message names the file and what to do.
    """
    try:
        with atomic_write(path) as temporary:
            with temporary.open("wb") as stream:
                write_state({"version": VERSION, "checksum": checksum(state), **state}, stream)
                stream.flush()
                os.fsync(stream.fileno())
            if earlier is not None and path.is_file():
                _name_too(path, earlier)
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
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise ValueError(f"reading checkpoint {path}: it is damaged or foreign ({reason}); start a new run") from error
    found = state.pop("version", None) if isinstance(state, dict) else type(state).__name__
    if found != VERSION:
        raise ValueError(f"reading checkpoint {path}: version {found}, expected {VERSION}; start a new run")
    if state.pop("checksum", None) != checksum(state):
        raise ValueError(f"reading checkpoint {path}: it is damaged (its checksum differs); start a new run")
    return state


def checksum(value: Any, before: int = 0) -> int:
    """CRC-32 of all keys, plain values and bytes of tensors in their order, continued from `before`."""
    if isinstance(value, Tensor):
        described = zlib.crc32(f"{value.dtype}{tuple(value.shape)}".encode(), before)
        return zlib.crc32(value.detach().contiguous().flatten().view(torch.uint8).numpy().data, described)
    if isinstance(value, Mapping):
        value = [part for item in value.items() for part in item]
    if isinstance(value, list | tuple):
        for part in value:
            before = checksum(part, before)
        return before
    return zlib.crc32(repr(value).encode(), before)


def write_state(state: dict[str, Any], stream: BinaryIO) -> None:
    """torch.save, but a full disk is reported as the OSError that it is."""
    try:
        torch.save(state, stream)
    except RuntimeError as error:
        raise next((cause for cause in _causes(error) if isinstance(cause, OSError)), error) from error


def _name_too(path: Path, other: Path) -> None:
    """Give a file a second name at once, replacing what had it; copied where the file system has no hard links."""
    temporary = other.with_name(f".{LATEST}.{other.name}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    temporary.replace(other)
    temporary.unlink(missing_ok=True)  # renaming onto another name of the same file leaves both


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from or during; torch hides a failed write behind an error of its own."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__
