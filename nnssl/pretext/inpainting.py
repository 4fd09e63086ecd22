"""Inpainting: give back all of a crop in which boxes hold noise, or voxels of another sample."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nnssl.losses.processes import own_generator
from nnssl.pretext.base import check_settings
from nnssl.pretext.reconstruction import Reconstruction, ReconstructionConfig
from nnssl.transforms.corruption import cut_out, swap_boxes


@dataclass(frozen=True)
class InpaintingConfig(ReconstructionConfig):
    """The SMIT benchmark only says "randomly masked regions": the corruption is SwinUNETR's."""

    corruption: float = 0.3  # boxes of noise fill up to this share of a crop; SwinUNETR paper and code 0.3
    swap: float = 0.0  # boxes of another crop on top, up to this share; SwinUNETR paper none, code 0.3: 0.6 in all

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, shares=("corruption", "swap"))


class Inpainting(Reconstruction):
    """Reconstruction of a corrupted crop; the error counts over all voxels, corrupted or not."""

    Config = InpaintingConfig
    SOURCE = "Pathak et al. 2016, arXiv:1604.07379; SMIT benchmark: mean squared error over all voxels"

    def prepare(self, volume: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """A random crop: "target" as it is, "views" with boxes of noise."""
        return self.corrupted(self.views(volume, generator), generator)

    def augment(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Boxes change places between the samples of a process, apart for each view."""
        if self.config.swap > 0:
            own = own_generator(generator)
            views = [swap_boxes(view, self.config.swap, own) for view in batch["views"].unbind(1)]
            batch = batch | {"views": torch.stack(views, dim=1)}
        return super().augment(batch, generator)

    def corrupted(self, clean: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Crops (V, 1, X, Y, Z) with boxes of noise as "views", beside what they were as "target"."""
        views = [cut_out(crop, self.config.corruption, generator) for crop in clean]
        return {"views": torch.stack(views), "target": clean}
