"""One description of a collection of scans, whatever it came from: sources, and what is left out with its reason."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
_FAMILIES = {
    "CT": ("ct", "ct1", "lowdose"),
    "PET": ("pet", "pt"),
    "MRI": (
        *("mr", "mri", "t1", "t1w", "t1c", "t1ce", "t1rho", "t1gd", "t2", "t2w", "t2star", "t2starw", "t2map", "t1map"),
        *("flair", "pd", "pdw", "pdt2", "inplanet1", "inplanet2", "angio", "swi", "bold", "cbv", "dwi", "sbref", "asl"),
        *("m0scan", "unit1", "mp2rage", "mtw", "mtr", "adc", "lge", "cine", "mra", "dce", "megre", "mese", "vfa"),
    ),
}


@dataclass(frozen=True)
class Source:
    """What becomes one case, or several: the image has not been decoded yet.

    Attributes:
        images: per channel of a case one file, or the slices of a DICOM stack in order. A labelled case may have
            several channels; everything else has one, and a 4D or multi-channel file is split into one case per part.
        place: where it lies, relative to the collection; for the table only.
        subject: who it is, only to keep cases of one subject together; "" where the collection does not say.
        modality: as the source says; "" where it does not.
        spacing_mm: X Y Z where the files themselves cannot say (DICOM stacks).
        float_voxels: the slices of a DICOM stack are scaled each in its own way (PET): integers would be cut off.
        masks: "anonymization" and "anatomy", as in MIC-DKFZ's pretrain_data.json.
    """

    images: tuple[tuple[Path, ...], ...]
    place: str
    subject: str = ""
    session: str = ""
    modality: str = ""
    spacing_mm: tuple[float, ...] | None = None
    float_voxels: bool = False
    label: Path | None = None
    masks: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class LeftOut:
    """What was not taken, and why.

    Attributes:
        damaged: it should have been a scan and is not a sound one; else it is sound and of another kind, or unwanted.
    """

    place: str
    reason: str
    damaged: bool = False


@dataclass(frozen=True)
class Collection:
    """Sources in a fixed order, none of them decoded.

    Attributes:
        kind: what it came from, in words.
        labels: `labels` (and `regions_class_order`) of a labelled nnU-Net data set with its `channel_names`, else {}.
    """

    kind: str
    sources: tuple[Source, ...]
    left_out: tuple[LeftOut, ...] = ()
    labels: Mapping[str, Any] = field(default_factory=dict)


def family(modality: str) -> str:
    """CT, MRI or PET of a modality as DICOM, BIDS or people write it; other words stay as they are, "" stays "".

    >>> family("T1w"), family("MR"), family("ct"), family("OCT")
    ('MRI', 'MRI', 'CT', 'OCT')
    """
    word = modality.casefold()
    return next((name for name, words in _FAMILIES.items() if word in words), modality)


def file_ending(path: Path) -> str | None:
    """The ending of a volume file, in small letters; None for every other file."""
    name = path.name.lower()
    return next((ending for ending in FILE_ENDINGS if name.endswith(ending)), None)
