"""What the tasks on plain crops without a teacher share: random crops, one trained encoder, small heads."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnssl.encoders.base import EncoderSpec
from nnssl.pretext.base import SMIT_RECIPE, PretextTask, check_settings
from nnssl.pretext.claims import COARSEST_MAP
from nnssl.pretext.two_views import TwoViewSettings
from nnssl.recipe import PretrainRecipe
from nnssl.transforms.views import ViewSampling


@dataclass(frozen=True)
class CropTaskConfig:
    """Settings of every task on plain crops."""

    drop_path: float = 0.0  # of the encoder; not in the paper; SMIT code 0.3, SwinUNETR code 0

    def __post_init__(self) -> None:
        check_settings(self, shares=("drop_path",))


class CropTask(PretextTask):
    """An encoder and its heads on `VIEWS` crops per volume; crops are the only augmentation (SMIT benchmark)."""

    VIEWS: ClassVar[int] = 1
    RECIPE = SMIT_RECIPE
    UNTRAINED = COARSEST_MAP

    def __init__(self, spec: EncoderSpec, recipe: PretrainRecipe, config: Any = None) -> None:
        super().__init__(spec, recipe, config)
        self.sampling = self.config.sampling if isinstance(self.config, TwoViewSettings) else ViewSampling()
        self.student = nn.ModuleDict({"encoder": self.new_encoder(self.config.drop_path), **self.heads(spec)})

    @abstractmethod
    def heads(self, spec: EncoderSpec) -> dict[str, nn.Module]:
        """Freshly initialised heads by name; called once, when `config` and `recipe` are known."""

    def views(self, volume: Tensor, generator: torch.Generator) -> Tensor:
        """`VIEWS` random crops (V, 1, *global_crop) of a volume (1, X, Y, Z), not resized."""
        return self.crops(volume, self.VIEWS, generator, self.sampling)

    def prepare(self, volume: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Random crops of one volume."""
        return {"views": self.views(volume, generator)}
