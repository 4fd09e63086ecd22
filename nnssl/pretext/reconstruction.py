"""Reconstruction: a plain autoencoder of uncorrupted crops; also the step that inpainting and SimMIM share."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nnssl.encoders.base import EncoderSpec, Features
from nnssl.layers.reconstruction import DECODERS, reconstruction_head
from nnssl.losses.health import map_health
from nnssl.losses.reconstruction import ERRORS, voxel_error
from nnssl.pretext.base import check_settings
from nnssl.pretext.crop_task import CropTask, CropTaskConfig
from nnssl.transforms.masking import hidden_voxels


@dataclass(frozen=True)
class ReconstructionConfig(CropTaskConfig):
    """Defaults are the SMIT benchmark's."""

    loss: str = "l2"  # paper: mean squared error; SMIT and SwinUNETR code "l1"
    decoder: str = "linear"  # depth to space, light and the same for every task; SwinUNETR code "convolutions"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, loss=tuple(ERRORS), decoder=tuple(DECODERS))


class Reconstruction(CropTask):
    """The encoder's coarsest map gives back the crop (Swin: stride 32, ViT: its patches).

    Tasks that corrupt their input say under "target" what the crop was; those that hide tokens say under "mask" (B, N)
    which, and only their voxels count. Targets stay in [0, 1], so that losses of different encoders compare.
    """

    Config = ReconstructionConfig
    SOURCE = "SMIT benchmark: autoencoder, mean squared error over all voxels"
    config: Any

    def heads(self, spec: EncoderSpec) -> dict[str, nn.Module]:
        """The decoder of the coarsest map."""
        return {"decoder": reconstruction_head(self.config.decoder, spec.channels[-1], spec.strides[-1])}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"loss": error per voxel, health of the cells that the decoder reads}."""
        features = self.encoder(batch["views"], batch.get("mask"))
        return {"loss": self.reconstruction_loss(features, batch), **map_health(features.maps[-1])}

    def reconstruction_loss(self, features: Features, batch: dict[str, Tensor]) -> Tensor:
        """Error per voxel of the crops, or of their hidden tokens."""
        hidden = None
        if "mask" in batch:
            hidden = hidden_voxels(batch["mask"], self.spec.token_grid(self.recipe.global_crop), self.spec.token_stride)
        image = self.student["decoder"](features.maps[-1])
        return voxel_error(image, batch.get("target", batch["image"]), self.config.loss, hidden=hidden)
