"""The folder that predictions go to: a case's files are made in `.partial` and moved out when they are whole."""

import gzip
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnssl.data.preprocessing import NnsslPlansManager
from nnssl.dataset_conversion.raw_dataset import Case

PARTIAL = ".partial"
PENDING = ".pending"  # .partial/CASE.pending: this case is yet to be predicted, whatever an earlier run left
BESIDE = (".npz", ".pkl")  # with the label map when probabilities are saved; nnU-Net writes the map last
NNUNET_FILES = ("plans.json", "dataset.json", "predict_from_raw_data_args.json")


def check_output(output: Path, cases: Sequence[Case], ending: str) -> None:
    """Refuse a folder whose label maps are not predictions: its reference labels would be replaced."""
    held = [case.identifier for case in cases if (output / f"{case.identifier}{ending}").is_file()]
    if held and not (output / "plans.json").is_file():
        raise ValueError(
            f"-o {output} holds label maps that nnssl_predict did not write ({held[0]}{ending}, no plans.json); "
            "give another folder"
        )


def unpredicted(cases: Sequence[Case], output: Path, ending: str, with_probabilities: bool) -> list[Case]:
    """The cases whose label map (and probabilities) are not in the output folder yet."""
    wanted = (ending, ".npz") if with_probabilities else (ending,)
    begun = pending(cases, output)
    return [
        case
        for case in cases
        if case in begun or not all((output / f"{case.identifier}{suffix}").is_file() for suffix in wanted)
    ]


def pending(cases: Sequence[Case], output: Path) -> list[Case]:
    """The cases that were begun and are not published."""
    return [case for case in cases if (output / PARTIAL / f"{case.identifier}{PENDING}").exists()]


def begin(cases: Sequence[Case], output: Path, ending: str) -> Path:
    """Mark the cases as pending; returns the folder to predict into. Earlier maps stay until they are replaced."""
    partial = output / PARTIAL
    partial.mkdir(parents=True, exist_ok=True)
    for case in cases:
        _remove(partial, case.identifier, (ending, *BESIDE))
        (partial / f"{case.identifier}{PENDING}").touch()
    return partial


def publish(label_map: Path, ending: str) -> None:
    """Move the whole files of one case out of `.partial`, the label map last."""
    case, output = label_map.name.removesuffix(ending), label_map.parent.parent
    for suffix in BESIDE:
        made = label_map.with_name(f"{case}{suffix}")
        if made.is_file():
            made.replace(output / made.name)
        else:
            (output / made.name).unlink(missing_ok=True)  # probabilities of an earlier run are not of this map
    label_map.replace(output / label_map.name)
    label_map.with_name(f"{case}{PENDING}").unlink(missing_ok=True)


def finish(cases: Sequence[Case], output: Path, ending: str) -> None:
    """Clear `.partial`; a case that failed keeps no map of an earlier run, which would pass for a new one."""
    for case in pending(cases, output):
        _remove(output, case.identifier, (ending, *BESIDE))
    for case in cases:
        _remove(output / PARTIAL, case.identifier, (ending, *BESIDE, PENDING))
    for name in NNUNET_FILES:
        (output / PARTIAL / name).unlink(missing_ok=True)
    with suppress(OSError):  # not empty: another prediction works here
        (output / PARTIAL).rmdir()


class PublishingPlans(NnsslPlansManager):
    """Plans whose writer publishes each label map as soon as it is whole, also in nnU-Net's worker processes."""

    def __init__(self, plans: dict, ending: str = ".nii.gz") -> None:
        super().__init__(plans)
        self.ending = ending  # of label maps: .nii.gz

    @property
    def image_reader_writer_class(self) -> Any:
        """nnU-Net's reader and writer, with our `write_seg`."""
        stock = super().image_reader_writer_class
        return type(f"Publishing{stock.__name__}", (_Publishing, stock), {"ending": self.ending})


class _Publishing(BaseReaderWriter):
    ending = ".nii.gz"

    def write_seg(self, seg: np.ndarray, output_fname: str, properties: dict) -> None:
        super().write_seg(seg, output_fname, properties)
        path = Path(output_fname)
        _check_whole(path, seg, self)
        if path.parent.name == PARTIAL:
            publish(path, self.ending)


def _check_whole(path: Path, seg: np.ndarray, reader: Any) -> None:
    """Read a label map back: SimpleITK cuts NIfTI files on a full disk, and reads them, without a word."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as stream:
                shutil.copyfileobj(stream, _Nowhere(), 1 << 20)
        found = np.bincount(reader.read_seg(str(path))[0].astype(np.int64).ravel())
    except (OSError, EOFError, RuntimeError) as error:
        raise OSError(f"writing {path}: the file is not whole ({error}); is the disk full?") from error
    wanted = np.bincount(seg.astype(np.int64).ravel())
    if found.shape != wanted.shape or (found != wanted).any():
        raise OSError(f"writing {path}: the file does not hold what was written; is the disk full?")


class _Nowhere:
    def write(self, data: bytes) -> int:
        return len(data)


def _remove(folder: Path, case: str, suffixes: Sequence[str]) -> None:
    for suffix in suffixes:
        (folder / f"{case}{suffix}").unlink(missing_ok=True)
