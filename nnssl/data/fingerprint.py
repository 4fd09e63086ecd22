"""Fingerprint of a raw data set, labelled or not, and the list of cases that cannot be used.

Two files are written to $nnUNet_preprocessed/DatasetNNN_Name: `nnssl_fingerprint.json` (ours: sizes in RAS axes, bad
cases, a key of the raw files) and `dataset_fingerprint.json`, which nnU-Net's trainer and planners expect; the latter
never over one that nnU-Net wrote (unless asked), and in the axes of the files, because stock readers do not reorient.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import SimpleITK
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIOWithReorient
from numpy.typing import NDArray

from nnssl.config import from_dict, to_dict
from nnssl.data.case_memory import bytes_to_read
from nnssl.data.cropping import crop_to_nonzero
from nnssl.data.intake import RawDataset, files_key
from nnssl.data.parallel import Terms, map_cases
from nnssl.dataset_conversion.raw_dataset import Case, check_case
from nnssl.geometry import ScanSizes
from nnssl.paths import load_json, preprocessed_folder, save_json

FILE_NAME = "nnssl_fingerprint.json"
SAMPLES_PER_CASE = 10_000  # foreground intensities, as in nnU-Net's analyze_case
VERSION = 1
WRITER = "nnssl"


@dataclass(frozen=True)
class Fingerprint:
    """Sizes and intensities of the usable cases; axes X Y Z (RAS)."""

    version: int
    files_key: str
    shapes: tuple[tuple[int, ...], ...]  # voxels after cropping to nonzero, per case
    spacings: tuple[tuple[float, ...], ...]  # mm, per case
    relative_size_after_cropping: float  # median over the cases
    intensities: dict[str, dict[str, float]]  # per channel; foreground = labels, without labels nonzero voxels
    bad_cases: dict[str, list[str]]  # identifier -> problems, one line each

    @property
    def sizes(self) -> ScanSizes:
        """Shapes and spacings as arrays."""
        return ScanSizes(np.array(self.shapes, dtype=float), np.array(self.spacings, dtype=float))

    def as_stock(self) -> dict[str, Any]:
        """nnU-Net's keys and axis order (Z Y X)."""
        return {
            "spacings": [list(spacing[::-1]) for spacing in self.spacings],
            "shapes_after_crop": [list(shape[::-1]) for shape in self.shapes],
            "foreground_intensity_properties_per_channel": self.intensities,
            "median_relative_size_after_cropping": self.relative_size_after_cropping,
        }


class _Facts(NamedTuple):
    """One case: what a worker sends back."""

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    relative_size: float
    samples: list[NDArray[np.float32]]  # foreground intensities per channel
    file_axes: tuple[int, ...]  # axis of the file that runs along X, Y, Z


def fingerprint(
    dataset: RawDataset, *, processes: int, clean: bool = False, scheduler: str | None = None
) -> Fingerprint:
    """The stored fingerprint if the raw files have not changed since, else a new one.

    Every case is checked on the way; bad ones are left out and listed in `bad_cases`. `scheduler` is the address of a
    Dask cluster that does the work instead of processes here.

    Raises:
        ValueError: no case is usable; the first problem is quoted.
    """
    path = preprocessed_folder() / dataset.name / FILE_NAME
    if path.is_file() and not clean:
        stored = load_json(path)
        if (stored.get("version"), stored.get("files_key")) == (VERSION, files_key(dataset)):
            return from_dict(Fingerprint, stored)
    fresh, stock = _extract(dataset, processes, scheduler)
    save_json(to_dict(fresh), path)
    stock_path = path.parent / "dataset_fingerprint.json"
    if clean or not stock_path.is_file() or load_json(stock_path).get("written_by") == WRITER:
        save_json(stock | {"written_by": WRITER}, stock_path)
    return fresh


def load_fingerprint(name: str) -> Fingerprint:
    """The stored fingerprint of a data set."""
    path = preprocessed_folder() / name / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no fingerprint yet; run nnssl_plan_and_preprocess -d {name}")
    return from_dict(Fingerprint, load_json(path))


def analyse_case(case: Case, dataset_json: dict[str, Any]) -> _Facts | list[str]:
    """Facts about one case, or its problems."""
    problems = check_case(case, dataset_json)
    if problems:
        return problems
    reader = SimpleITKIOWithReorient()
    images, properties = reader.read_images([str(path) for path in case.images])
    label = None if case.label is None else reader.read_seg(str(case.label))[0]
    cropped, seg, _ = crop_to_nonzero(images, label)
    foreground = seg[0] > 0 if case.label is not None else seg[0] >= 0
    generator = np.random.default_rng(1234)
    return _Facts(
        shape=cropped.shape[:0:-1],
        spacing=tuple(float(value) for value in properties["spacing"][::-1]),
        relative_size=float(np.prod(cropped.shape[1:]) / np.prod(images.shape[1:])),
        samples=[_sample(channel[foreground], generator) for channel in cropped],
        file_axes=_file_axes(case),
    )


def _extract(dataset: RawDataset, processes: int, scheduler: str | None) -> tuple[Fingerprint, dict[str, Any]]:
    """Our fingerprint, and nnU-Net's in the axes of the files."""
    jobs = {case.identifier: (case, dataset.dataset_json) for case in dataset.cases}
    cases = {case.identifier: case for case in dataset.cases}
    terms = Terms(lambda key: bytes_to_read(cases[key]), scheduler=scheduler)
    outcomes = map_cases(analyse_case, jobs, processes=processes, title=f"fingerprint {dataset.name}", terms=terms)
    bad = {key: [f"{dataset.name} case {key}: {text}"] for key, text in outcomes.failures.items()}
    bad |= {key: found for key, found in outcomes.results.items() if isinstance(found, list)}
    facts = [outcomes.results[key] for key in jobs if key not in bad]
    if not facts:
        first = next(iter(bad.values()))[0]
        raise ValueError(
            f"data set {dataset.name}: none of its {len(jobs)} cases is usable; the first problem: {first}"
        )
    fresh = Fingerprint(
        version=VERSION,
        files_key=files_key(dataset),
        shapes=tuple(tuple(int(side) for side in fact.shape) for fact in facts),
        spacings=tuple(fact.spacing for fact in facts),
        relative_size_after_cropping=float(np.median([fact.relative_size for fact in facts])),
        intensities={
            str(channel): _statistics(np.concatenate([fact.samples[channel] for fact in facts]))
            for channel in range(dataset.channels)
        },
        bad_cases={key: [_without_folders(text, cases[key]) for text in bad[key]] for key in sorted(bad)},
    )
    in_file_axes = dataclasses.replace(
        fresh,
        shapes=tuple(_to_file_axes(fact.shape, fact.file_axes) for fact in facts),
        spacings=tuple(_to_file_axes(fact.spacing, fact.file_axes) for fact in facts),
    )
    return fresh, in_file_axes.as_stock()


def _without_folders(text: str, case: Case) -> str:
    """A problem with the names of the case's files alone: folders name people."""
    for path in (*case.images, *([] if case.label is None else [case.label])):
        for folder in (path.parent, path.resolve().parent):
            text = text.replace(f"{folder}/", "")
    return text


def _sample(values: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    """Up to SAMPLES_PER_CASE foreground intensities; every case with foreground weighs the same."""
    return generator.choice(values, SAMPLES_PER_CASE) if len(values) else values


def _statistics(values: NDArray[np.float32]) -> dict[str, float]:
    """nnU-Net's statistics of the foreground; zeros where no case has any."""
    values = values if len(values) else np.zeros(1, dtype=np.float32)
    low, median, high = np.percentile(values, (0.5, 50.0, 99.5))
    figures = {"max": values.max(), "mean": values.mean(), "median": median, "min": values.min()}
    figures |= {"percentile_00_5": low, "percentile_99_5": high, "std": values.std()}
    return {name: float(figure) for name, figure in figures.items()}


def _file_axes(case: Case) -> tuple[int, ...]:
    """For X, Y, Z (RAS): the axis of the stored file that runs along it."""
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(case.images[0]))
    reader.ReadImageInformation()
    image = SimpleITK.Image([1, 1, 1], SimpleITK.sitkUInt8)
    image.SetDirection(reader.GetDirection())
    image.SetSpacing((1.0, 2.0, 3.0))  # the spacing marks the axis
    return tuple(round(mark) - 1 for mark in SimpleITK.DICOMOrient(image, "RAS").GetSpacing())


def _to_file_axes(values: tuple[Any, ...], file_axes: tuple[int, ...]) -> tuple[Any, ...]:
    """Values along X, Y, Z in the order of the file's axes."""
    return tuple(values[file_axes.index(axis)] for axis in range(3))
