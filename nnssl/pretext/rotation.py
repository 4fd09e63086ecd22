"""Rotation: by which multiple of 90 degrees was the crop turned? Four classes about one axis, or 24 orientations."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnssl.encoders.base import EncoderSpec
from nnssl.losses.classification import accuracy, class_entropy
from nnssl.losses.health import feature_health
from nnssl.pretext.base import check_settings
from nnssl.pretext.crop_task import CropTask, CropTaskConfig
from nnssl.transforms.rotation import CLASSES, check_turns, random_turns


@dataclass(frozen=True)
class RotationConfig(CropTaskConfig):
    """The SMIT benchmark has four classes and does not name the axis."""

    classes: int = 4  # turns about `axis`; 24: every orientation of a cube
    axis: int = 2  # 0 X, 1 Y, 2 Z: in the axial plane, whose spacing is the same both ways (1.5 x 1.5 x 2 mm), so that
    # only anatomy tells the class; SwinUNETR code 0, though its paper says z

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, classes=CLASSES, axis=(0, 1, 2))


class Rotation(CropTask):
    """A linear classifier on the encoder's summary; the sides that are turned into each other must be equal."""

    Config = RotationConfig
    SOURCE = "Gidaris et al. 2018, arXiv:1803.07728; SMIT benchmark: cross entropy of four classes"
    config: RotationConfig

    def heads(self, spec: EncoderSpec) -> dict[str, nn.Module]:
        """One linear layer."""
        check_turns(self.recipe.global_crop, self.config.classes, self.config.axis)
        return {"classifier": nn.Linear(spec.channels[-1], self.config.classes)}

    def prepare(self, volume: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """A turned random crop and its class, "turn" (1,)."""
        crop = self.views(volume, generator)
        views, turns = random_turns(crop, self.config.classes, axis=self.config.axis, generator=generator)
        return {"views": views, "turn": turns}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"loss": cross entropy, ln(classes) where nothing is known; "accuracy", health}."""
        summary = self.encoder(batch["views"]).summary
        logits = self.student["classifier"](summary)
        loss = class_entropy(logits, batch["turn"])
        return {"loss": loss, "accuracy": accuracy(logits, batch["turn"]), **feature_health(summary)}
