"""What the proofs on real scans share: a small raw data set, tiny encoder files, and the commands that a user types."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch
from safetensors.torch import load_file

from nnssl.commands import plan_and_preprocess, predict, train
from nnssl.encoders import build_encoder, encoder_spec
from nnssl.encoders.base import EncoderSpec
from nnssl.weights.encoder_file import save_encoder
from nnssl.weights.header import EncoderHeader
from tests.toy_dataset import set_environment

PLANS = "nnsslPlansProof"
ENCODER = "neck.encoder."  # where a checkpoint keeps it
Geometry = tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...]]

# name of the table: options that make it small (none where its line is), native crop (voxels, X Y Z)
TINY: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "vit_tiny_16": ({}, (48, 32, 32)),
    "vit_tiny_8": ({}, (24, 24, 24)),
    "swin_tiny": ({}, (64, 32, 32)),
    "swin_unetr": ({"width": 12}, (64, 32, 32)),  # MONAI's conventions, window 7
    "primus_s": ({"dim": 96, "depth": 4, "heads": 2}, (32, 24, 24)),
    "resenc_l": ({"widths": [8, 12, 16, 24, 32, 32], "depths": [1] * 6}, (64, 32, 32)),
}


def tiny_spec(encoder: str) -> EncoderSpec:
    """Facts about a tiny encoder."""
    options, crop = TINY[encoder]
    return encoder_spec(encoder, crop, options=options)


def write_tiny_encoder(path: Path, encoder: str) -> Path:
    """A weight file as a pretraining writes it, with seeded random weights."""
    spec = tiny_spec(encoder)
    torch.manual_seed(1)
    network = build_encoder(spec.name, native_crop=spec.native_crop, options=spec.options)
    header = EncoderHeader(spec.name, spec.native_crop, spec.intensity, encoder_options=spec.options)
    save_encoder(path, network, header)
    return path


@dataclass
class Road:
    """One data set on its way from scans to label maps; each step notes its seconds of CPU time."""

    folder: Path
    dataset: str  # DatasetNNN_Name
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def model(self) -> Path:
        """The model's folder."""
        return self.folder / "nnUNet_results" / self.dataset / f"FrozenEncoderTrainer__{PLANS}__3d_fullres"

    @property
    def plans(self) -> dict[str, Any]:
        """The planner's plans."""
        file = self.folder / "nnUNet_preprocessed" / self.dataset / f"{PLANS}.json"
        return json.loads(file.read_text(encoding="utf-8"))

    @property
    def checkpoint(self) -> dict[str, Any]:
        """The final checkpoint of fold 0."""
        return torch.load(self.model / "fold_0" / "checkpoint_final.pth", weights_only=True)

    @property
    def losses(self) -> list[float]:
        """Mean training loss of each epoch."""
        return [float(value) for value in self.checkpoint["logging"]["train_losses"]]

    def plan(self, *words: str | Path) -> None:
        """nnssl_plan_and_preprocess, only for fine-tuning."""
        number = self.dataset[7:10]
        fixed = ["-d", number, "-plans_name", PLANS, "-c", "3d_fullres", "-np", "1"]
        self._run("plan", plan_and_preprocess.main, [*fixed, *words])

    def train(self, *words: str | Path, settings: Sequence[str]) -> None:
        """nnssl_train of fold 0 without its validation."""
        fixed = [self.dataset, "3d_fullres", "0", "-p", PLANS, "-device", "cpu", "--no_validation"]
        self._run("train", train.main, [*fixed, *words, "--set", *settings])

    def predict(self) -> None:
        """nnssl_predict of the unseen cases, with probabilities."""
        fixed = ["-i", self.folder / "unseen", "-o", self.folder / "predicted", "-d", self.dataset, "-p", PLANS]
        self._run(
            "predict", predict.main, [*fixed, "-f", "0", "-device", "cpu", "--disable_tta", "--save_probabilities"]
        )

    def _run(self, name: str, main: Callable[[Sequence[str]], int], words: Sequence[str | Path]) -> None:
        started = time.process_time()
        assert main([str(word) for word in words]) == 0
        self.seconds[name] = time.process_time() - started

    def figures(self) -> str:
        """Loss and seconds in one line."""
        losses = " -> ".join(f"{loss:.3f}" for loss in self.losses)
        parts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in self.seconds.items())
        return f"loss {losses}; {sum(self.seconds.values()):.0f} s of CPU time ({parts})"


def take_cases(
    source: Path, folder: Path, cases: Sequence[str], unseen: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> Road:
    """A raw data set of links to some labelled cases, and a folder of scans to predict."""
    set_environment(folder, monkeypatch)
    raw = folder / "nnUNet_raw" / source.name
    for target, kind, names in (
        (raw / "imagesTr", "imagesTr", cases),
        (raw / "labelsTr", "labelsTr", cases),
        (folder / "unseen", "imagesTr", unseen),
    ):
        target.mkdir(parents=True)
        for file in [file for name in names for file in sorted((source / kind).glob(f"{name}*.nii.gz"))]:
            (target / file.name).symlink_to(file)
    description = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
    (raw / "dataset.json").write_text(json.dumps(description | {"numTraining": len(cases)}), encoding="utf-8")
    return Road(folder, source.name)


def trained_encoder(road: Road) -> dict[str, torch.Tensor]:
    """The encoder's tensors in the final checkpoint."""
    weights = road.checkpoint["network_weights"]
    return {name.removeprefix(ENCODER): value for name, value in weights.items() if name.startswith(ENCODER)}


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def file_sha256(file: Path) -> str:
    """The same of an encoder file's tensors."""
    return tensors_sha256(load_file(file))


def check_predictions(road: Road, labels: set[int]) -> None:
    """Every unseen scan has a label map of its geometry and finite probabilities that sum to one."""
    scans = sorted((road.folder / "unseen").glob("*_0000.nii.gz"))
    maps = sorted((road.folder / "predicted").glob("*.nii.gz"))
    assert [path.name for path in maps] == [path.name.replace("_0000", "") for path in scans] and scans
    for scan, path in zip(scans, maps, strict=True):
        found = SimpleITK.ReadImage(str(path))
        assert _geometry(found) == _geometry(SimpleITK.ReadImage(str(scan)))
        assert set(np.unique(SimpleITK.GetArrayFromImage(found))) <= labels
        probabilities = np.load(str(path).replace(".nii.gz", ".npz"))["probabilities"]
        assert np.isfinite(probabilities).all() and probabilities.min() >= 0 and probabilities.max() <= 1.001


def _geometry(image: SimpleITK.Image) -> Geometry:
    exact = (image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    spacing, origin, direction = (tuple(round(value, 4) for value in values) for values in exact)
    return image.GetSize(), spacing, origin, direction
