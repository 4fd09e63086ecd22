"""SimMIM: guess the voxels of hidden tokens (arXiv:2111.09886); on a ViT it is the 3DINO paper's baseline MIM-ViT."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nnssl.pretext.base import check_settings
from nnssl.pretext.claims import COARSEST_MAP_HIDDEN_TOKENS
from nnssl.pretext.reconstruction import Reconstruction, ReconstructionConfig
from nnssl.transforms.masking import random_mask


@dataclass(frozen=True)
class SimMIMConfig(ReconstructionConfig):
    """Defaults are the SMIT benchmark's; the original SimMIM has `loss` "l1" and a ratio of 0.6."""

    mask_ratio: float = 0.75  # exactly ceil(ratio * tokens) of every crop; SMIT code 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, positive=("mask_ratio",), shares=("mask_ratio",))


class SimMIM(Reconstruction):
    """Reconstruction of hidden tokens; a token of the encoder's grid is the block (Swin and ViT-16: 16^3 voxels)."""

    Config = SimMIMConfig
    SOURCE = "Xie et al. 2022, arXiv:2111.09886; SMIT benchmark: mean squared error over hidden voxels"
    UNTRAINED = COARSEST_MAP_HIDDEN_TOKENS
    MASKS = True

    def prepare(self, volume: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """A random crop, and which of its tokens are hidden: "mask" (1, N) bool."""
        mask = random_mask(self.tokens, self.config.mask_ratio, generator)
        return super().prepare(volume, generator) | {"mask": mask[None]}
