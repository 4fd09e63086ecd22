"""What a raw data set offers: its cases, whether they are labelled, and a key that changes when its files do."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.dataset_conversion.raw_dataset import Case, list_cases, load_dataset_json
from nnssl.paths import dataset_name, raw_folder


@dataclass(frozen=True)
class RawDataset:
    """A raw data set as found on disk; its images have not been opened yet."""

    name: str  # DatasetNNN_Name
    dataset_json: dict[str, Any]
    cases: tuple[Case, ...]

    @property
    def labelled(self) -> bool:
        """Whether at least one case has a label map."""
        return any(case.label is not None for case in self.cases)

    @property
    def channels(self) -> int:
        """Image files per case."""
        return len(self.dataset_json["channel_names"])


def open_dataset(name_or_id: str | int) -> RawDataset:
    """Read dataset.json and list the cases of a data set in $nnUNet_raw, labelled or not.

    Raises:
        FileNotFoundError: unknown data set, or no images in it.
        ValueError: dataset.json is damaged or incomplete.
    """
    root, name = raw_folder(), dataset_name(name_or_id)
    if not (root / name).is_dir():
        raise FileNotFoundError(f"data set {name}: no such folder in nnUNet_raw={root}; put the raw data there")
    dataset_json = load_dataset_json(root / name)
    return RawDataset(name, dataset_json, tuple(list_cases(root / name, dataset_json)))


def files_key(dataset: RawDataset) -> str:
    """A key of case names, file sizes and modification times, channels and labels: cheap, no file is opened."""
    digest = hashlib.sha256(repr((dataset.dataset_json["channel_names"], dataset.dataset_json["labels"])).encode())
    for case in dataset.cases:
        files = case.images if case.label is None else (*case.images, case.label)
        digest.update(repr((case.identifier, case.label is None, [_stamp(path) for path in files])).encode())
    return digest.hexdigest()[:16]


def _stamp(path: Path) -> tuple[str, int, int]:
    if not path.is_file():
        return path.name, -1, -1
    status = path.stat()
    return path.name, status.st_size, status.st_mtime_ns
