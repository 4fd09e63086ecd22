"""Folders of nnU-Net and of pretrained weights, data set names, and files written whole or not at all."""

import errno
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STAMP_ENDING = ".stamp.json"  # of the files beside folders of stored volumes, see nnssl/data/stamp.py


def raw_folder() -> Path:
    """$nnUNet_raw: data sets as the user brings them."""
    return _environment_folder("nnUNet_raw", must_exist=True)


def preprocessed_folder() -> Path:
    """$nnUNet_preprocessed: fingerprints, plans and stored volumes."""
    return _environment_folder("nnUNet_preprocessed")


def results_folder() -> Path:
    """$nnUNet_results: trained models, one folder per data set."""
    return _environment_folder("nnUNet_results")


def pretrained_folder() -> Path:
    """$nnUNet_results/pretrained: one folder per pretraining run."""
    return results_folder() / "pretrained"


def dataset_name(name_or_id: str | int) -> str:
    """Folder name `DatasetNNN_Name` of a data set given by number, by name or by folder name.

    Looks in $nnUNet_raw, then $nnUNet_preprocessed, then $nnUNet_results.
    """
    text = str(name_or_id)
    pattern = f"Dataset{int(text):03d}_" if text.isdigit() else None
    found: set[str] = set()
    for folder in _existing_environment_folders():
        names = [path.name for path in folder.glob("Dataset[0-9][0-9][0-9]_*") if path.is_dir()]
        found |= {name for name in names if (name.startswith(pattern) if pattern else text in (name, name[11:]))}
    if len(found) == 1:
        return found.pop()
    where = ", ".join(str(folder) for folder in _existing_environment_folders())
    if not found:
        raise FileNotFoundError(
            f"data set {text!r}: no such folder in {where or 'any nnU-Net folder'}; "
            "give the number (4) or the name (Dataset004_Name) of an existing data set"
        )
    raise ValueError(f"data set {text!r} is ambiguous: {', '.join(sorted(found))}; give the full folder name")


def dataset_id(name: str) -> int:
    """Number of a `DatasetNNN_Name` folder."""
    match = re.fullmatch(r"Dataset(\d{3})_.+", name)
    if match is None:
        raise ValueError(f"data set folder {name!r}: expected DatasetNNN_Name with three digits")
    return int(match.group(1))


def plans_in(dataset_folder: Path) -> list[str]:
    """Names of the plans files of a preprocessed data set."""
    return sorted(path.stem for path in dataset_folder.glob("*Plans*.json") if not path.name.endswith(STAMP_ENDING))


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on failure `path` stays as it was.

    Raises:
        OSError: the disk is full or not writable; the message names the file and what to do.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        temporary.chmod(0o666 & ~_umask())
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(
                error.errno, f"writing {path}: the disk is full; free space and continue, the earlier file is unchanged"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def save_json(values: Any, path: Path) -> None:
    """Write JSON atomically: the old file stays whole until the new one is complete."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def load_json(path: Path) -> Any:
    """Read JSON; a damaged file is named in one line."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"reading {path}: not valid JSON ({error}); restore or delete the file") from error


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _environment_folder(variable: str, must_exist: bool = False) -> Path:
    value = os.environ.get(variable)
    if not value:
        raise FileNotFoundError(
            f"environment variable {variable} is not set; set it to a folder, "
            f"for example: export {variable}=$HOME/{variable}"
        )
    folder = Path(value)
    if must_exist and not folder.is_dir():
        raise FileNotFoundError(f"{variable}={folder}: no such folder; create it or correct the variable")
    return folder


def _existing_environment_folders() -> list[Path]:
    values = [os.environ.get(name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")]
    return [Path(value) for value in values if value and Path(value).is_dir()]
