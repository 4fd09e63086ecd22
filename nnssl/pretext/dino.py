"""DINO: the token of one view predicts the teacher's token of the other view (Caron et al. 2021, arXiv:2104.14294)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from nnssl.pretext.base import SMIT_RECIPE
from nnssl.pretext.claims import COARSEST_MAP
from nnssl.pretext.self_distillation import DistillationConfig, SelfDistillation
from nnssl.pretext.two_views import TwoViewSettings

VIEWS = 2


@dataclass(frozen=True)
class DinoConfig(DistillationConfig, TwoViewSettings):
    """Two global views and no local ones, as in the SMIT benchmark."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.sampling  # its own check


class Dino(SelfDistillation):
    """Cross entropy between views, each against the other one only; views are not masked.

    The benchmark does not say which tokens its DINO taps: here the deepest, so that every stage learns (SMIT's own tap
    lies before a Swin's last stage). A ViT's token is its class token, a Swin's the mean over its bottleneck.
    """

    Config = DinoConfig
    RECIPE: ClassVar[Mapping[str, Any]] = SMIT_RECIPE
    SOURCE = "DINO, Caron et al. 2021 (arXiv:2104.14294), eq. 2-4; two views as in the SMIT benchmark"
    UNTRAINED: ClassVar[Mapping[str, tuple[str, ...]]] = COARSEST_MAP
    config: DinoConfig

    def heads(self) -> Mapping[str, int]:
        """One head for the image token."""
        return {"image_head": self.spec.channels[-1]}

    def prepare(self, volume: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Two random crops, the only augmentation."""
        return {"views": self.crops(volume, VIEWS, generator, self.config.sampling)}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"loss": cross entropy over both pairs of views, in nats, and health}."""
        seen, taught = self.tap(self.student, batch["views"]), self.teach(batch["views"])
        loss, health = self.image_loss("image_head", seen.image, taught.image)
        return {"loss": loss, **health}
