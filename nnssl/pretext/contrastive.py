"""Contrastive: two crops of one volume attract, crops of different volumes repel (SimCLR without augmentation)."""

from dataclasses import dataclass

from torch import Tensor, nn

from nnssl.encoders.base import EncoderSpec
from nnssl.losses.contrastive import two_view_info_nce
from nnssl.losses.health import feature_health
from nnssl.losses.processes import SCOPES
from nnssl.pretext.base import check_settings
from nnssl.pretext.crop_task import CropTask, CropTaskConfig
from nnssl.pretext.two_views import TwoViewSettings, check_negatives


@dataclass(frozen=True)
class ContrastiveConfig(CropTaskConfig, TwoViewSettings):
    """The SMIT benchmark names neither temperature nor head."""

    temperature: float = 0.5  # SwinUNETR and SimCLR
    hidden: int = 2048  # of the three-layer projection head
    projection: int = 512  # width of the projections; SwinUNETR 512, with a single linear layer
    scope: str = "global"  # negatives come from all processes; SwinUNETR code "process"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, positive=("temperature", "hidden", "projection"), scope=SCOPES)


class Contrastive(CropTask):
    """InfoNCE of the encoder's summaries (ViT: class token, Swin: mean of the normalised bottleneck)."""

    VIEWS = 2
    Config = ContrastiveConfig
    SOURCE = "Chen et al. 2020, arXiv:2002.05709, eq. 1; SMIT benchmark: InfoNCE of two random crops"
    config: ContrastiveConfig

    def heads(self, spec: EncoderSpec) -> dict[str, nn.Module]:
        """The projection head, without batch norm."""
        check_negatives("contrastive", self.recipe.batch_size, self.config.scope)
        hidden = self.config.hidden
        head = nn.Sequential(
            nn.Linear(spec.channels[-1], hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, self.config.projection),
        )
        return {"projection": head}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"loss": InfoNCE, ln(2B - 1) where projections say nothing; health}."""
        summary = self.encoder(batch["views"]).summary
        loss = two_view_info_nce(self.student["projection"](summary), self.config.temperature, self.config.scope)
        return {"loss": loss, **feature_health(summary)}
