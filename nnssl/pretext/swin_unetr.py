"""SwinUNETR's pretraining: rotation, contrastive and inpainting jointly; on a ViT it is the 3DINO paper's MONAI-ViT."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnssl.encoders.base import EncoderSpec, Features
from nnssl.losses.classification import accuracy, class_entropy
from nnssl.losses.contrastive import two_view_info_nce
from nnssl.losses.health import feature_health, map_health
from nnssl.losses.processes import SCOPES
from nnssl.pretext.base import check_settings
from nnssl.pretext.inpainting import Inpainting, InpaintingConfig
from nnssl.pretext.two_views import TwoViewSettings, check_negatives
from nnssl.transforms.rotation import check_turns, random_turns

TURNS = 4
READS = ("pooled", "corner")


@dataclass(frozen=True)
class SwinUNETRConfig(TwoViewSettings, InpaintingConfig):
    """Defaults are the paper's; `corruption`, `swap`, `decoder` and `drop_path` as in inpainting."""

    loss: str = "l1"
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)  # of rotation, contrastive, inpainting
    temperature: float = 0.5  # code; not in the paper
    projection: int = 512  # width of the projections
    axis: int = 2  # of the turns: 0 X, 1 Y, 2 Z; paper z, code 0
    read: str = "pooled"  # rotation and contrastive heads read the summary; code "corner": the bottleneck's cells 0, 1
    scope: str = "global"  # negatives come from all processes; code "process"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, positive=("temperature", "projection"), axis=(0, 1, 2), read=READS, scope=SCOPES)
        if min(self.weights) < 0:
            raise ValueError(f"SwinUNETR setting weights={self.weights}: must be 0 or more")


class SwinUNETR(Inpainting):
    """Two crops per volume, each turned, then corrupted; a linear head for either, and the decoder of inpainting."""

    VIEWS = 2
    Config = SwinUNETRConfig
    SOURCE = "Tang et al. 2022, arXiv:2111.14791; SMIT benchmark: weights 1, 1, 1"

    def heads(self, spec: EncoderSpec) -> dict[str, nn.Module]:
        """The decoder, and one linear layer each for turns and projections."""
        crop = self.recipe.global_crop
        check_turns(crop, TURNS, self.config.axis)
        if self.config.weights[1]:
            check_negatives("swin_unetr", self.recipe.batch_size, self.config.scope)
        if self.config.read == "corner" and all(side == spec.strides[-1] for side in crop):
            raise ValueError(
                f"pretext task swin_unetr with read=corner: the coarsest map of a crop of {crop} voxels has one cell, "
                "two are read; take a larger crop or read=pooled"
            )
        width = spec.channels[-1]
        return super().heads(spec) | {
            "classifier": nn.Linear(width, TURNS),
            "projection": nn.Linear(width, self.config.projection),
        }

    def prepare(self, volume: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Two turned crops: "target", with boxes of noise "views", and their classes "turn" (2,)."""
        crops = self.views(volume, generator)
        clean, turns = random_turns(crops, TURNS, axis=self.config.axis, generator=generator)
        return self.corrupted(clean, generator) | {"turn": turns}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"loss": weighted sum of "rotation", "contrastive" and "inpainting"; "accuracy" of the turns, health}."""
        config = self.config
        features = self.encoder(batch["views"])
        for_turn, for_contrast = self._read(features)
        logits = self.student["classifier"](for_turn)
        projections = self.student["projection"](for_contrast)
        parts = {
            "rotation": class_entropy(logits, batch["turn"]),
            "contrastive": two_view_info_nce(projections, config.temperature, config.scope),
            "inpainting": self.reconstruction_loss(features, batch),
        }
        weighted = [weight * part for weight, part in zip(config.weights, parts.values(), strict=True)]
        return {
            "loss": torch.stack(weighted).sum(),
            **{name: part.detach() for name, part in parts.items()},
            "accuracy": accuracy(logits, batch["turn"]),
            **self._health(features),
        }

    def _health(self, features: Features) -> dict[str, Tensor]:
        """Of the summary where a head with weight reads it, else of the cells."""
        reads_summary = self.config.read == "pooled" and any(self.config.weights[:2])
        return feature_health(features.summary) if reads_summary else map_health(features.maps[-1])

    def _read(self, features: Features) -> tuple[Tensor, Tensor]:
        """(B, C) for the classifier and (B, C) for the projection."""
        if self.config.read == "pooled":
            return features.summary, features.summary
        cells = features.maps[-1].flatten(2)
        first, second = (F.layer_norm(cells[..., cell], cells.shape[1:2]) for cell in range(2))
        return first, second
