"""The header of one DICOM file, read by GDCM through SimpleITK: what is needed to sort it into a volume."""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK

NOT_SCANS = {  # SOP classes without voxels of a body, by the start of their identifier (DICOM PS3.4, B.5)
    "1.2.840.10008.1.3.10": "a DICOMDIR",
    "1.2.840.10008.5.1.4.1.1.11": "a presentation state",
    "1.2.840.10008.5.1.4.1.1.88": "a structured report",
    "1.2.840.10008.5.1.4.1.1.104": "an encapsulated document",
    "1.2.840.10008.5.1.4.1.1.481": "a radiotherapy object",
    "1.2.840.10008.5.1.4.1.1.66": "a segmentation or registration",
    "1.2.840.10008.5.1.4.1.1.9": "a waveform",
    "1.2.840.10008.5.1.4.1.1.4.2": "a spectroscopy",
}
NOT_VOLUMES = {
    "SEG": "a segmentation",
    "SR": "a structured report",
    "PR": "a presentation state",
    "KO": "a key object note",
    "RTSTRUCT": "a structure set",
    "RTDOSE": "a dose map",
    "RTPLAN": "a treatment plan",
    "RTIMAGE": "a portal image",
    "REG": "a registration",
    "US": "ultrasound frames",
    "IVUS": "ultrasound frames",
    "CR": "a radiograph",
    "DX": "a radiograph",
    "MG": "a mammogram",
    "RF": "fluoroscopy",
    "XA": "angiography frames",
    "ES": "endoscopy",
    "XC": "a photograph",
    "SM": "microscopy",
    "OP": "a photograph of the eye",
}
_ORDER = ("0020|0100", "0020|0012", "0018|1060", "0018|0086", "0018|9087", "0020|0013")
# temporal position, acquisition, trigger time, echo, b-value, instance number: what tells repeated slices apart


@dataclass(frozen=True)
class Header:
    """One image file of a series.

    Attributes:
        size: columns, rows, frames.
        spacing_mm: X Y (between pixels) and Z, which only a multi-frame file knows.
        position: of the first voxel, mm; None where the file does not say.
        axes: directions of rows and columns, six cosines; None where the file does not say.
        order: sorts repeated slices of the same place.
        slope: of the rescaling to stored units.
    """

    path: Path
    series: str
    instance: str
    patient: str
    study: str
    modality: str
    image_type: str
    size: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    position: tuple[float, ...] | None
    axes: tuple[float, ...] | None
    order: tuple[float, ...]
    components: int
    slope: float
    times: int


def is_dicom(path: Path) -> bool:
    """Whether a file claims to be DICOM: by its mark at byte 128, or by its ending."""
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".dicom", ".ima")
    except OSError:
        return path.suffix.lower() in (".dcm", ".dicom", ".ima")


def read_header(path: Path) -> Header | str:
    """The header, or in words why the file holds no scan.

    Raises:
        OSError: the file cannot be opened.
        ValueError: damaged.
    """
    if path.stat().st_size == 0:
        raise ValueError("empty file; copy it again")
    kind = _sop_class(path)
    words = next((words for start, words in NOT_SCANS.items() if kind == start or kind.startswith(f"{start}.")), None)
    if words:
        return words
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError("cannot be read as DICOM; copy the file again") from error
    return _header(path, reader)


def _header(path: Path, reader: SimpleITK.ImageFileReader) -> Header:
    def tag(key: str) -> str:
        return reader.GetMetaData(key).strip(" \0") if reader.HasMetaDataKey(key) else ""

    size, spacing = [*reader.GetSize(), 1][:3], [*reader.GetSpacing(), 1.0][:3]
    series = tag("0020|000e")
    if not series or min(size) < 1:
        raise ValueError("no series or no image size in its DICOM header; copy the file again")
    modality = tag("0008|0060")
    frames = max(int(size[2]), 1)
    cosines = np.reshape(reader.GetDirection(), (reader.GetDimension(), -1)) if reader.GetDimension() == 3 else None
    return Header(
        path=path,
        series=series,
        instance=tag("0008|0018") or str(path),
        patient=tag("0010|0020") or tag("0010|0010") or tag("0020|000d"),
        study=tag("0020|000d"),
        modality=modality,
        image_type=tag("0008|0008").upper(),
        size=(int(size[0]), int(size[1]), frames),
        spacing_mm=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        position=_numbers(tag("0020|0032"), 3),
        axes=_numbers(tag("0020|0037"), 6) or (_flat(cosines) if frames > 1 else None),
        order=tuple(next(iter(_numbers(tag(key), 1) or (0.0,))) for key in _ORDER),
        components=reader.GetNumberOfComponents(),
        slope=next(iter(_numbers(tag("0028|1053"), 1) or (1.0,))),
        times=int(next(iter(_numbers(tag("0020|0105"), 1) or (1.0,)))),
    )


def _flat(cosines: np.ndarray | None) -> tuple[float, ...] | None:
    return None if cosines is None else tuple(float(value) for value in cosines[:, :2].T.ravel())


def _numbers(text: str, count: int) -> tuple[float, ...] | None:
    """The first `count` numbers of a DICOM value a\\b\\c, None where it is empty or shorter or no number."""
    try:
        values = tuple(float(word) for word in text.split("\\"))
    except ValueError:
        return None
    return values[:count] if len(values) >= count else None


def _sop_class(path: Path) -> str:
    """The kind of object, from the file's own header (always explicit little endian, PS3.10), "" without one."""
    with path.open("rb") as stream:
        start = stream.read(2048)
    at = start.find(b"\x02\x00\x02\x00UI", 132)
    if start[128:132] != b"DICM" or at < 0:
        return ""
    (length,) = struct.unpack("<H", start[at + 6 : at + 8])
    return start[at + 8 : at + 8 + length].decode("ascii", "replace").strip(" \0")
