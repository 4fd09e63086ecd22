"""Scans in every format for tests of the intake: volume files and DICOM slices, written with SimpleITK."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import SimpleITK

SHAPE = (12, 10, 8)  # X Y Z
SOP_MR, SOP_CT = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.2"


def scan(seed: int = 0, shape: tuple[int, ...] = SHAPE, kind: type = np.int16) -> SimpleITK.Image:
    """A noisy scan; equal seeds have equal voxels. Axes run along L P S; 4D shapes are X Y Z T."""
    values = np.random.default_rng(seed).integers(0, 1000, size=shape[::-1]).astype(kind)
    image = SimpleITK.GetImageFromArray(values, isVector=False)
    image.SetSpacing([0.5, 0.75, 2.0, 1.0][: len(shape)])
    return image


def write(path: Path, image: SimpleITK.Image, notes: Mapping[str, str] | None = None) -> Path:
    """Write an image by the ending of `path`, with header notes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for key, text in (notes or {}).items():
        image.SetMetaData(key, text)
    SimpleITK.WriteImage(image, str(path))
    return path


def write_dicom(
    folder: Path,
    image: SimpleITK.Image,
    tags: Mapping[str, str] | None = None,
    *,
    series: str = "1.2.3.4",
    start: int = 0,
) -> list[Path]:
    """One file per slice of a 3D image.

    Args:
        tags: DICOM tags of every slice ("0008|0060": "CT"); default MR.
        start: instance number of the first slice; also makes the instance UIDs of several times differ.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    files = []
    cosines = [f"{value:g}" for value in np.reshape(image.GetDirection(), (3, 3))[:, :2].T.ravel()]
    for index in range(image.GetDepth()):
        part = image[:, :, index]
        position = image.TransformIndexToPhysicalPoint((0, 0, index))
        number = start + index + 1
        facts = {
            "0008|0060": "MR",
            "0008|0016": SOP_MR,
            "0008|0008": "ORIGINAL\\PRIMARY\\AXIAL",
            "0010|0010": "Doe^Jane",
            "0010|0020": "P1",
            "0020|000d": "1.2.3",
            "0020|000e": series,
            "0008|0018": f"{series}.{number}",
            "0020|0013": str(number),
            "0020|0032": "\\".join(f"{value:.6g}" for value in position),
            "0020|0037": "\\".join(cosines),
            "0018|0050": f"{image.GetSpacing()[2]:g}",
        }
        for key, text in (facts | dict(tags or {})).items():
            part.SetMetaData(key, text)
        files.append(folder / f"{series}_{number:03d}.dcm")
        writer.SetFileName(str(files[-1]))
        writer.Execute(part)
    return files


def minimal_dicom(path: Path, sop_class: str) -> Path:
    """A DICOM file without an image: its preamble, its mark and the kind of object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = sop_class.encode() + b"\0" * (len(sop_class) % 2)
    path.write_bytes(b"\0" * 128 + b"DICM" + b"\x02\x00\x02\x00UI" + len(text).to_bytes(2, "little") + text)
    return path
