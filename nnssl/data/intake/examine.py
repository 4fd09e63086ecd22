"""A source is decoded once: is it sound and a scan, which volumes does it hold, and which voxels are in them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from nnssl.data.intake.collection import LeftOut, Source, file_ending
from nnssl.dataset_conversion.scan_check import (
    declared_values,
    geometry_difference,
    itk_reason,
    label_problems,
    read_image,
    voxel_problems,
)

LABEL_VALUES = 32  # a volume of whole numbers with fewer different values is a label map
SAMPLES = 200_000  # voxels looked at for guesses
AIR_HU = (-1100.0, -850.0)
AIR_SHARE = 0.02  # CT: at least this share of the voxels is air; scanners pad with -1024, -2000 or -3024
COPIES = 3  # decoded volumes held at once: read, turned to RAS, one plane or part as float
COMPRESSION = 4  # voxels are this much larger than a compressed file, at most as a rule
VECTORS = {"1006": "a displacement field", "1007": "a vector field"}  # NIfTI intent codes


@dataclass(frozen=True)
class Volume:
    """One sound 3D volume of a source.

    Attributes:
        part: which volume of a 4D or multi-channel file; None where the file holds one.
        shape, spacing_mm: X Y Z in the file's own axes.
        content: hash of the voxels turned to RAS, so that a copy in another format or axis order has the same.
        hounsfield: whether the values look like Hounsfield units.
    """

    source: Source
    part: int | None
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    content: str
    hounsfield: bool


def examine(source: Source, labels: dict[str, Any]) -> list[Volume | LeftOut]:
    """The volumes of a source, and parts that are left out.

    Args:
        labels: of a labelled collection, else {}.

    Raises:
        OSError, ValueError: damaged, in words.
    """
    if source.label is not None or len(source.images) > 1:
        return [_labelled_case(source, labels)]
    image = read_source(source)
    reason = _no_scan(image)
    if reason:
        return [LeftOut(source.place, reason)]
    count = parts_of(image)
    if count == 1:
        return [_volume(source, None, part_of(image, 0))]
    found: list[Volume | LeftOut] = []
    for part in range(count):
        try:
            found.append(_volume(source, part, part_of(image, part)))
        except ValueError as error:
            found.append(LeftOut(f"{source.place} part {part + 1}", str(error), damaged=True))
    return found


def read_source(source: Source, channel: int = 0) -> SimpleITK.Image:
    """Decode the file or the DICOM stack of one channel; times and channels are not split yet.

    Raises:
        OSError, ValueError: damaged.
    """
    files = source.images[channel]
    if file_ending(files[0]):
        return read_image(files[0])
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        if len(files) == 1:
            return SimpleITK.ReadImage(str(files[0]), imageIO="GDCMImageIO")
        return _read_stack(files, source)
    except RuntimeError as error:
        raise ValueError(f"DICOM voxels cannot be read: {itk_reason(error)}; copy the files again") from error


def bytes_to_decode(source: Source) -> float:
    """Memory to examine or to copy a source, estimated from the sizes of its files; missing files count nothing."""
    files = [file for channel in source.images for file in channel if file.is_file()]
    return float(COPIES * COMPRESSION * sum(file.stat().st_size for file in files))


def strip(image: SimpleITK.Image) -> SimpleITK.Image:
    """The same image without a word of metadata: headers name people, places and dates."""
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    return image


def parts_of(image: SimpleITK.Image) -> int:
    """Volumes in an image: times of a 4D one, components of a multi-channel one."""
    return int(np.prod(image.GetSize()[3:], dtype=int)) * image.GetNumberOfComponentsPerPixel()


def part_of(image: SimpleITK.Image, part: int) -> SimpleITK.Image:
    """One 3D single-valued volume of an image; parts count components first, then times."""
    components = image.GetNumberOfComponentsPerPixel()
    while image.GetDimension() > 3:
        outer = image.GetSize()[-1]
        inner = parts_of(image) // components // outer
        index = part // components // inner % outer
        size = [*image.GetSize()[:-1], 0]
        image = SimpleITK.Extract(image, size, [0] * (image.GetDimension() - 1) + [index])
    return SimpleITK.VectorIndexSelectionCast(image, part % components) if components > 1 else image


def hash_voxels(image: SimpleITK.Image) -> str:
    """Hash of the voxels in RAS order as float32, whatever type and axes the file has."""
    oriented = SimpleITK.DICOMOrient(image, "RAS")  # named: a view does not keep its image alive
    array = SimpleITK.GetArrayViewFromImage(oriented)
    digest = hashlib.sha256(repr(array.shape).encode())
    for plane in array:
        digest.update(np.ascontiguousarray(plane, dtype=np.float32).tobytes())
    return digest.hexdigest()


def _volume(source: Source, part: int | None, image: SimpleITK.Image) -> Volume:
    array = SimpleITK.GetArrayViewFromImage(image)
    problems = voxel_problems(Path(source.place), array)
    if problems:
        raise ValueError(problems[0].removeprefix(f"{source.place}: "))
    return Volume(
        source=source,
        part=part,
        shape=tuple(image.GetSize()),
        spacing_mm=tuple(round(float(side), 4) for side in image.GetSpacing()),
        content=hash_voxels(image),
        hounsfield=_looks_like_ct(_sample(array)),
    )


def _labelled_case(source: Source, labels: dict[str, Any]) -> Volume | LeftOut:
    """A case with all its channels and its label map on the same voxels."""
    images = [read_source(source, channel) for channel in range(len(source.images))]
    if any(image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() > 1 for image in images):
        return LeftOut(source.place, "a labelled case must hold one 3D volume per channel", damaged=True)
    for image in images[1:]:
        difference = geometry_difference(image, images[0])
        if difference:
            return LeftOut(source.place, f"channels do not lie on the same voxels: {difference}", damaged=True)
    if source.label is not None:
        problems = label_problems(source.label, images[0], declared_values(labels["labels"]))
        if problems:
            return LeftOut(source.place, problems[0].replace(str(source.label), "label map"), damaged=True)
    volumes = [_volume(source, None, image) for image in images]
    content = hashlib.sha256("".join(volume.content for volume in volumes).encode()).hexdigest()
    first = volumes[0]
    return Volume(source, None, first.shape, first.spacing_mm, content, first.hounsfield)


def _no_scan(image: SimpleITK.Image) -> str:
    """Why a sound image is no scan, "" for one that may be."""
    kind, components = image.GetPixelIDTypeAsString(), image.GetNumberOfComponentsPerPixel()
    if "complex" in kind:
        return "complex values; export the magnitude"
    if components in (3, 4) and "8-bit" in kind:
        return "a colour picture (RGB)"
    intent = image.GetMetaData("intent_code") if image.HasMetaDataKey("intent_code") else ""
    if intent in VECTORS:
        return f"{VECTORS[intent]}, not a scan"
    if image.GetDimension() < 3 or min(image.GetSize()[:3]) == 1:
        return f"a 2D picture ({'x'.join(map(str, image.GetSize()))})"
    values = _sample(SimpleITK.GetArrayViewFromImage(image))
    distinct = np.unique(values)
    whole = bool(np.isfinite(distinct).all() and (distinct == np.round(distinct)).all())
    if whole and 1 < len(distinct) <= LABEL_VALUES and int(distinct[-1]) <= 255 and distinct[0] >= 0:
        return f"a label map or mask ({len(distinct)} whole values), not a scan"
    return ""


def _looks_like_ct(values: NDArray[np.float32]) -> bool:
    """Whether there is air in Hounsfield units and nothing beyond what scanners store."""
    air = float(np.mean((values >= AIR_HU[0]) & (values <= AIR_HU[1])))
    return air >= AIR_SHARE and float(values.min()) >= -4096.0 and float(values.max()) >= 100.0


def _sample(array: NDArray[Any]) -> NDArray[np.float32]:
    """At most about SAMPLES voxels, evenly."""
    flat = array.reshape(-1)
    return flat[:: max(1, flat.size // SAMPLES)].astype(np.float32)


def _read_stack(files: tuple[Path, ...], source: Source) -> SimpleITK.Image:
    """Slices in the order given; the distance of slices is that of their positions, not what a header claims."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(file) for file in files])
    if source.float_voxels:
        reader.SetOutputPixelType(SimpleITK.sitkFloat32)
    image = reader.Execute()
    image.SetSpacing(source.spacing_mm)
    return image
