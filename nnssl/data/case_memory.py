"""Memory that preprocessing one case takes, from the headers of its files."""

import math
from collections.abc import Sequence
from typing import Any

import SimpleITK

from nnssl.data.stored_shape import limit_of
from nnssl.dataset_conversion.raw_dataset import Case

# bytes per voxel, upper bounds of what was measured: a scan is held as an ITK image, in its own type and as float32
READ_IMAGE, READ_LABEL = 20, 16
STORED_IMAGE, STORED_LABEL = 12, 18  # new channel, an intermediate of the products, float16; votes and their masks


def bytes_to_read(case: Case) -> float:
    """Peak memory in bytes of reading and cropping a case; 0 where a header cannot be read (such a case fails)."""
    return _bytes_of(_header(case), case)


def bytes_needed(case: Case, configurations: Sequence[dict[str, Any]]) -> float:
    """Peak memory in bytes of preprocessing a case; 0 as in `bytes_to_read`."""
    header = _header(case)
    if header is None:
        return 0.0
    stored = max(_stored_voxels(header, each) for each in configurations)
    return _bytes_of(header, case) + stored * (len(case.images) * STORED_IMAGE + STORED_LABEL)


def _stored_voxels(header: tuple[tuple[int, ...], tuple[float, ...]], configuration: dict[str, Any]) -> float:
    """From the volume in mm, so that it does not matter how the axes of the file lie."""
    limit = limit_of(configuration)
    voxels = math.prod(header[0]) * math.prod(header[1]) / math.prod(configuration["spacing"])
    return voxels if limit is None else min(voxels, math.prod(limit.voxels))


def _header(case: Case) -> tuple[tuple[int, ...], tuple[float, ...]] | None:
    """Voxels and mm, along the axes of the file."""
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(case.images[0]))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    return reader.GetSize()[:3], reader.GetSpacing()[:3]


def _bytes_of(header: tuple[tuple[int, ...], tuple[float, ...]] | None, case: Case) -> float:
    if header is None:
        return 0.0
    labelled = case.label is not None
    return float(math.prod(header[0])) * (len(case.images) * READ_IMAGE + labelled * READ_LABEL)
