"""Checks of single scans: does the file decode, is it a finite 3D volume, do image and label lie on the same voxels."""

import gzip
import logging
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK
from tqdm import tqdm

CHUNK_BYTES = 1 << 20  # a multiple of every voxel size
FORMATS = {
    **dict.fromkeys((".nii", ".nii.gz"), "NiftiImageIO"),
    **dict.fromkeys((".nrrd", ".nhdr"), "NrrdImageIO"),
    **dict.fromkeys((".mha", ".mhd"), "MetaImageIO"),
}  # file ending -> its reader in ITK, which goes by the content
TOLERANCE_VOXELS = 0.5  # corners of two grids may differ by this much of the smallest voxel side


def read_scan(path: Path) -> SimpleITK.Image:
    """Read a 3D single-valued volume, decoded completely.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image, truncated, corrupt, or not 3D; one line that names the file.
    """
    image = read_image(path)
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        size = "x".join(str(side) for side in image.GetSize())
        raise ValueError(
            f"{path}: size {size} with {image.GetNumberOfComponentsPerPixel()} value(s) per voxel; only 3D volumes "
            "with one value are allowed, store each channel in its own file _0000, _0001, ..."
        )
    return image


def read_image(path: Path) -> SimpleITK.Image:
    """Read an image of any dimension, decoded completely; errors as of `read_scan`, except for the dimension."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; add it or remove the case")
    check_bytes(path)
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    found = SimpleITK.ImageFileReader.GetImageIOFromFileName(str(path))
    if found and found not in {FORMATS.get("".join(path.suffixes[-count:]), found) for count in (1, 2)}:
        raise ValueError(f"{path}: cannot be read as an image: its content is {found}'s; give it the right ending")
    try:
        return SimpleITK.ReadImage(str(path))
    except RuntimeError as error:
        reason = itk_reason(error)
        raise ValueError(f"{path}: cannot be read as an image: {reason}; copy it again or remove the case") from error


def itk_reason(error: RuntimeError) -> str:
    """The last line of an error of ITK, which says what happened."""
    reason = str(error).strip().splitlines()[-1].removeprefix("sitk::ERROR: ")
    return "its voxels are incomplete" if "No such file" in reason else reason  # ITK's word for a truncated .mha


def check_bytes(path: Path) -> None:
    """Check that a file holds all bytes its header promises, a right checksum (.gz) and finite voxels (NIfTI).

    ITK fills a truncated NIfTI with garbage and turns NaN and Inf of a NIfTI into 0, both without a word, hence this.

    Raises:
        ValueError: empty, truncated, corrupt, a header without size or spacing, or voxels that are not finite; one line
            that names the file.
    """
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: empty file; copy it again or remove the case")
    try:
        if path.name.endswith((".nii", ".nii.gz")):
            _check_nifti(path)
        elif path.name.endswith(".gz"):
            with gzip.open(path, "rb") as stream:
                while stream.read(CHUNK_BYTES):
                    pass
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{path}: truncated or corrupt gzip file ({error}); copy it again or remove the case"
        ) from error
    except nibabel.filebasedimages.ImageFileError as error:
        raise ValueError(f"{path}: not a NIfTI file ({error}); copy it again or remove the case") from error


def image_problems(paths: Sequence[Path]) -> tuple[list[str], SimpleITK.Image | None]:
    """Problems of the channels of one case, and the first readable channel as the reference of the geometry."""
    problems: list[str] = []
    reference, first = None, None
    for path in paths:
        try:
            image = read_scan(path)
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        problems += voxel_problems(path, SimpleITK.GetArrayViewFromImage(image))
        if reference is None:
            reference, first = image, path
        else:
            difference = geometry_difference(image, reference)
            if difference:
                problems.append(
                    f"{path}: {difference} of {first.name if first else ''}; channels of a case must lie on the same "
                    "voxels, resample one to the other"
                )
    return problems, reference


def label_problems(path: Path, image: SimpleITK.Image | None, allowed: Iterable[int]) -> list[str]:
    """Problems of a label map: readable, on the voxels of `image` (if given), only `allowed` whole numbers."""
    try:
        label = read_scan(path)
    except (OSError, ValueError) as error:
        return [str(error)]
    problems = []
    if image is not None:
        difference = geometry_difference(label, image)
        if difference:
            problems.append(f"{path}: {difference} of its image; resample the label map to the image")
    try:
        values = label_values(SimpleITK.GetArrayViewFromImage(label))
    except ValueError as error:
        return [*problems, f"{path}: {error}"]
    unknown = sorted(set(values) - set(allowed))
    if unknown:
        known = ", ".join(str(value) for value in sorted(set(allowed)))
        shown = ", ".join(str(value) for value in unknown[:8]) + (", ..." if len(unknown) > 8 else "")
        problems.append(
            f"{path}: label value(s) {shown} are not in dataset.json, which allows {known}; "
            "declare them there or correct the label map"
        )
    return problems


def label_values(array: np.ndarray) -> list[int]:
    """The values of a label map, sorted.

    Raises:
        ValueError: values that are not whole numbers.
    """
    if array.dtype.kind == "f":
        if not np.isfinite([array.min(), array.max()]).all():
            raise ValueError("label map holds NaN or Inf; allowed are whole numbers")
        whole = array.astype(np.int64)
        if not np.array_equal(whole, array):
            odd = float(array[whole != array][0])
            raise ValueError(f"label map holds {odd:g}; allowed are whole numbers (was it interpolated linearly?)")
        array = whole
    low, high = int(array.min()), int(array.max())
    if high - low > 1_000_000:
        return [int(value) for value in np.unique(array)]
    counts = np.zeros(high - low + 1, dtype=np.int64)
    for plane in array:  # plane by plane: bincount needs 8 bytes per voxel
        counts += np.bincount(np.subtract(plane, low, dtype=np.int64).ravel(), minlength=len(counts))
    return [int(value) + low for value in np.flatnonzero(counts)]


def voxel_problems(path: Path, array: np.ndarray) -> list[str]:
    """What makes a decoded volume useless: voxels that are not finite, or all the same; [] for a good one."""
    low, high = array.min(), array.max()
    if not np.isfinite([low, high]).all():
        count = int(array.size - np.count_nonzero(np.isfinite(array)))
        return [_not_finite(path, count)]
    if low == high:
        return [f"{path}: constant image, every voxel is {float(low):g}; export the scan again or remove the case"]
    return []


def geometry_difference(first: SimpleITK.Image, second: SimpleITK.Image) -> str | None:
    """How the voxel grids of two volumes differ, with both values; None where they agree within half a voxel."""
    if first.GetSize() != second.GetSize():
        return f"shape {first.GetSize()} differs from shape {second.GetSize()}"
    smallest = min(*first.GetSpacing(), *second.GetSpacing())
    distance = float(np.abs(_corners(first) - _corners(second)).max())
    if distance <= TOLERANCE_VOXELS * smallest:
        return None
    for what, ours, theirs in (
        ("spacing", first.GetSpacing(), second.GetSpacing()),
        ("direction", first.GetDirection(), second.GetDirection()),
        ("origin", first.GetOrigin(), second.GetOrigin()),
    ):
        if not np.allclose(ours, theirs, rtol=1e-3, atol=1e-3):
            return f"{what} {_text(ours)} differs from {what} {_text(theirs)}"
    return f"corners lie up to {distance:.3g} mm from those"


def declared_values(labels: Mapping[str, Any]) -> set[int]:
    """All voxel values that the "labels" of a dataset.json declare: classes, members of regions, and ignore."""
    return {int(v) for value in labels.values() for v in (value if isinstance(value, list | tuple) else [value])}


def map_parallel(
    function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], *, workers: int, title: str | None = None
) -> list[Any]:
    """function(*arguments[i]) for each i, in order, over `workers` processes; `title` shows a progress bar."""
    bar = tqdm(total=len(arguments), desc=title, disable=title is None)
    with bar:
        if workers <= 1 or len(arguments) <= 1:
            return [_and_update(function(*values), bar) for values in arguments]
        context = get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(arguments)), mp_context=context) as pool:
            futures = [pool.submit(function, *values) for values in arguments]
            try:
                return [_and_update(future.result(), bar) for future in futures]
            except BrokenProcessPool as error:
                raise OSError("a worker process died, probably out of memory; use fewer workers: -np 1") from error


def _and_update(result: Any, bar: Any) -> Any:
    bar.update()
    return result


def _check_nifti(path: Path) -> None:
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # it says what it repairs; here that is refused
    image: Any = nibabel.load(path)  # type: ignore[attr-defined]
    header, kind, offset = image.header, image.header.get_data_dtype(), int(image.dataobj.offset)
    expected = offset + int(np.prod(header.get_data_shape())) * kind.itemsize
    bad = 0
    with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as stream:
        start = stream.read(offset)
        _check_header(path, header, start)
        size = len(start)
        while chunk := stream.read(CHUNK_BYTES):  # to the end, where gzip keeps its checksum
            size += len(chunk)
            if kind.kind == "f":
                values = np.frombuffer(chunk, kind, count=len(chunk) // kind.itemsize)
                bad += len(values) - int(np.count_nonzero(np.isfinite(values)))
    if size < expected:
        raise ValueError(f"{path}: truncated, {size} of {expected} bytes; copy it again or remove the case")
    if bad:
        raise ValueError(_not_finite(path, bad))


def _check_header(path: Path, header: Any, start: bytes) -> None:
    """Sizes and spacings as stored: readers take 0, negative and NaN ones for 1."""
    stored = type(header)(start[: header.sizeof_hdr], endianness=header.endianness, check=False)
    sides = [int(side) for side in stored["dim"][1 : 1 + max(1, int(stored["dim"][0]))]]
    if min(sides) < 1:
        raise ValueError(f"{path}: header says {'x'.join(map(str, sides))} voxels; export the scan again")
    spacing = stored["pixdim"][1 : 1 + min(3, len(sides))]
    if not (np.isfinite(spacing).all() and (spacing != 0).all()):
        raise ValueError(f"{path}: header says spacing {_text(spacing)} mm; export the scan again or correct it")


def _not_finite(path: Path, count: int) -> str:
    return f"{path}: {count} NaN or Inf voxels; every voxel must be finite, replace them or remove the case"


def _corners(image: SimpleITK.Image) -> np.ndarray:
    """(8, 3) physical positions of the corner voxels, mm."""
    ends = [(0, side - 1) for side in image.GetSize()]
    indices = [(x, y, z) for x in ends[0] for y in ends[1] for z in ends[2]]
    return np.array([image.TransformIndexToPhysicalPoint(index) for index in indices])


def _text(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
