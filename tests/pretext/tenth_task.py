"""A new pretext task in one file: from a crop's features, guess how bright the crop is."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from nnssl.encoders.base import EncoderSpec
from nnssl.losses.health import feature_health
from nnssl.pretext.base import SMIT_RECIPE, PretextTask
from nnssl.pretext.claims import COARSEST_MAP
from nnssl.recipe import PretrainRecipe


@dataclass(frozen=True)
class BrightnessConfig:
    """Settings."""

    drop_path: float = 0.0


class Brightness(PretextTask):
    """Squared error of the mean intensity."""

    Config = BrightnessConfig
    RECIPE = SMIT_RECIPE
    SOURCE = "made up for this test"
    UNTRAINED = COARSEST_MAP

    def __init__(self, spec: EncoderSpec, recipe: PretrainRecipe, config: Any = None) -> None:
        super().__init__(spec, recipe, config)
        encoder = self.new_encoder(self.config.drop_path)
        self.student = nn.ModuleDict({"encoder": encoder, "head": nn.Linear(spec.channels[-1], 1)})

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"loss": squared error, health}."""
        summary = self.encoder(batch["views"]).summary
        guess = self.student["head"](summary)[:, 0].float()
        return {"loss": F.mse_loss(guess, batch["image"].mean((1, 2, 3, 4))), **feature_health(summary)}
