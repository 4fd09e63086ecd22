"""A body-like CT with many slices: tissue in air, noise, and six organs."""

import json
from pathlib import Path

import numpy as np
import SimpleITK
from scipy.ndimage import gaussian_filter

NAME = "Dataset999_SyntheticCT"


def write_synthetic(folder: Path, shape: tuple[int, ...]) -> Path:
    """Two body-like CTs of `shape` voxels X Y Z at 0.8 x 0.8 x 1 mm with noise, air around, and six organs."""
    raw = folder / NAME
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True)
    words = {"channel_names": {"0": "CT"}, "labels": {"background": 0} | {f"organ {n}": n for n in range(1, 7)}}
    (raw / "dataset.json").write_text(json.dumps({**words, "numTraining": 2, "file_ending": ".nii.gz"}))
    for case in range(2):
        generator = np.random.default_rng(case)
        grid = np.meshgrid(
            *(np.linspace(-1, 1, side, dtype=np.float32) for side in shape[::-1]), indexing="ij", sparse=True
        )
        scan = np.where(0 * grid[0] + grid[1] ** 2 / 0.6 + grid[2] ** 2 / 0.8 < 1, 40, -1000).astype(np.float32)
        label = np.zeros(scan.shape, np.uint8)
        for organ in range(1, 7):
            centre, size = generator.uniform(-0.45, 0.45, 3), generator.uniform(0.06, 0.3, 3)
            inside = sum(((axis - c) / s) ** 2 for axis, c, s in zip(grid, centre, size, strict=True)) < 1
            label[inside], scan[inside] = organ, generator.uniform(-80, 400)
        texture = gaussian_filter(generator.normal(size=scan.shape).astype(np.float32), 1.2)
        image = SimpleITK.GetImageFromArray(np.rint(gaussian_filter(scan, 0.7) + 120 * texture).astype(np.int16))
        for array, path in (
            (image, f"imagesTr/body_{case}_0000"),
            (SimpleITK.GetImageFromArray(label), f"labelsTr/body_{case}"),
        ):
            array.SetSpacing((0.8, 0.8, 1.0))
            array.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
            SimpleITK.WriteImage(array, str(raw / f"{path}.nii.gz"))
    return raw
