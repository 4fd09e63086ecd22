"""Tiny raw data sets for tests: smooth random scans with a blob label, in $nnUNet_raw of a temporary folder."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from scipy.ndimage import gaussian_filter

from nnssl.dataset_conversion.raw_dataset import write_dataset_json

SHAPE, SPACING = (20, 26, 18), (1.0, 1.0, 1.2)  # X Y Z


def use_folders(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point nnU-Net's folders into `root`; returns nnUNet_raw."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (root / name).mkdir()
        monkeypatch.setenv(name, str(root / name))
    return root / "nnUNet_raw"


def make_image(array_zyx: np.ndarray, spacing: tuple[float, ...] = SPACING) -> SimpleITK.Image:
    """An image whose axes run along R A S (the direction is written for ITK's L P S)."""
    image = SimpleITK.GetImageFromArray(array_zyx)
    image.SetSpacing(spacing)
    image.SetDirection((-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))
    return image


def write_dataset(raw: Path, name: str, *, cases: int = 4, labelled: bool = True, seed: int = 0) -> Path:
    """A data set of `cases` scans of slightly different sizes."""
    folder, generator = raw / name, np.random.default_rng(seed)
    (folder / "imagesTr").mkdir(parents=True)
    for case in range(cases):
        shape = tuple(side + case % 3 for side in SHAPE)[::-1]
        scan = gaussian_filter(generator.normal(size=shape), 1.5)
        scan = ((scan - scan.min()) * 1000 + 5).astype(np.float32)
        SimpleITK.WriteImage(make_image(scan), folder / "imagesTr" / f"case_{case}_0000.nii.gz")
        if labelled:
            (folder / "labelsTr").mkdir(exist_ok=True)
            label = (scan > np.percentile(scan, 80)).astype(np.uint8)
            SimpleITK.WriteImage(make_image(label), folder / "labelsTr" / f"case_{case}.nii.gz")
    labels = {"background": 0, "blob": 1} if labelled else {"background": 0}
    write_dataset_json(folder, {"0": "CT"}, labels, cases)
    return folder


def reorient(source: Path, target: Path, orientation: str = "LSP") -> None:
    """A copy of an image with permuted and flipped axes and the same physical content."""
    target.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(source)), orientation), str(target))
