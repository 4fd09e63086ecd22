"""Embedded demo data: warped copies of the MNI152 template that nilearn ships, with grey and white matter as labels.

Source: ICBM 2009 nonlinear average brain (Fonov et al. 2011) as distributed inside the pip package nilearn. Every
volume is derived from this one anatomy by a seeded smooth warp, a contrast change, a bias field and noise: good for
seeing the road work, no evidence for any clinical question.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates, zoom

from nnssl.dataset_conversion.raw_dataset import write_dataset_json
from nnssl.paths import save_json

LABELS = {"background": 0, "grey_matter": 1, "white_matter": 2}
LABELLED, UNLABELLED = "Dataset901_DemoBrain", "Dataset902_DemoBrainUnlabelled"
SEEDS = {"train": 10_000, "validation": 20_000, "unlabelled": 30_000}  # first warp of each group: never shared

Volume = NDArray[np.float32]


@dataclass(frozen=True)
class DemoSizes:
    """How many warped brains to write, and their voxel size."""

    train: int = 8
    validation: int = 6
    unlabelled: int = 40
    spacing_mm: float = 4.0


@dataclass(frozen=True)
class Template:
    """One anatomy: intensities and tissue probabilities, all (X, Y, Z) in [0, 1]."""

    intensity: Volume
    grey: Volume
    white: Volume


def write_demo(raw: Path, sizes: DemoSizes, seed: int = 0) -> None:
    """Write the labelled and the unlabelled raw data set; fold 0 of the labelled one is train | validation."""
    template = load_template(sizes.spacing_mm)
    names = {group: [f"{group}_{i:03d}" for i in range(getattr(sizes, group))] for group in SEEDS}
    for group, cases in names.items():
        folder = raw / (UNLABELLED if group == "unlabelled" else LABELLED)
        for i, case in enumerate(cases):
            image, label = warped_brain(template, np.random.default_rng([seed, SEEDS[group] + i]))
            _write(image, folder / "imagesTr" / f"{case}_0000.nii.gz", sizes.spacing_mm)
            if group != "unlabelled":
                _write(label, folder / "labelsTr" / f"{case}.nii.gz", sizes.spacing_mm)
    labelled = names["train"] + names["validation"]
    write_dataset_json(raw / LABELLED, {"0": "MRI"}, LABELS, len(labelled))
    write_dataset_json(raw / UNLABELLED, {"0": "MRI"}, {"background": 0}, len(names["unlabelled"]))
    save_json([{"train": names["train"], "val": names["validation"]}], raw / LABELLED / "splits_final.json")


def load_template(spacing_mm: float) -> Template:
    """The MNI152 T1 template and its tissue maps at an isotropic spacing, from the pip package nilearn."""
    try:
        from nilearn import datasets
    except ModuleNotFoundError as error:
        raise FileNotFoundError("the demo data comes with the package nilearn: pip install 'nnssl[demo]'") from error
    loaders = (datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    volumes = [np.asarray(loader(resolution=1).dataobj, dtype=np.float32) for loader in loaders]
    coarse = [np.clip(zoom(gaussian_filter(v, spacing_mm / 2.355), 1 / spacing_mm, order=1), 0, 1) for v in volumes]
    return Template(*coarse)


def warped_brain(template: Template, random: np.random.Generator) -> tuple[Volume, NDArray[np.uint8]]:
    """One new scan and its labels: smooth warp, change of contrast, bias field, noise."""
    shape = template.intensity.shape
    grid = np.stack(np.meshgrid(*[np.arange(side, dtype=np.float32) for side in shape], indexing="ij"))
    coordinates = grid + np.stack([_smooth_noise(shape, random, sigma=7.0) * 1.3 for _ in range(3)])
    maps = [map_coordinates(v, coordinates, order=1) for v in (template.intensity, template.grey, template.white)]
    image, grey, white = maps
    background = np.clip(1 - grey - white, 0, 1)
    label = np.argmax(np.stack([background, grey, white]), axis=0).astype(np.uint8)
    return _new_contrast(image, random), label


def _new_contrast(image: Volume, random: np.random.Generator) -> Volume:
    """Change the gamma, add a bias field and noise inside the head."""
    bent = image ** random.uniform(0.5, 2.0)
    biased = bent * np.exp(_smooth_noise(image.shape, random, sigma=12.0) * 0.2)
    noisy = biased + random.normal(0, 0.04, image.shape) * (image > 0.02)
    return (1000 * np.clip(noisy, 0, None)).astype(np.float32)


def _smooth_noise(shape: tuple[int, ...], random: np.random.Generator, sigma: float) -> Volume:
    """A smooth random field of unit standard deviation; `sigma` in voxels."""
    field = gaussian_filter(random.standard_normal(shape).astype(np.float32), sigma, mode="wrap")
    return field / field.std()


def _write(volume: NDArray[np.generic], path: Path, spacing_mm: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.transpose(2, 1, 0)))
    image.SetSpacing([spacing_mm] * 3)
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))  # the template's axes run to Right, Anterior, Superior
    sitk.WriteImage(image, str(path), useCompression=True)


def describe(sizes: DemoSizes) -> Iterator[str]:
    """What the demo data is, in plain words."""
    yield (
        f"demo data: {sizes.train} + {sizes.validation} labelled and {sizes.unlabelled} unlabelled volumes, all made "
        "from ONE brain (the MNI152 template inside the package nilearn) by random smooth warps, contrast changes, "
        "bias fields and noise."
    )
    yield "validation warps occur neither in training nor in pretraining."
    yield "These numbers show that the road works, nothing more."
