"""SMIT: masked image prediction with masked patch token and image token distillation (Jiang et al. 2022)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from nnssl.encoders.base import EncoderSpec
from nnssl.layers.reconstruction import DepthToSpaceHead
from nnssl.losses.reconstruction import ERRORS, voxel_error
from nnssl.pretext.base import check_settings, encoder_of
from nnssl.pretext.claims import COARSEST_MAP_HIDDEN_TOKENS
from nnssl.pretext.ibot import Ibot, IbotConfig
from nnssl.pretext.self_distillation import Taps
from nnssl.recipe import PretrainRecipe
from nnssl.transforms.masking import hidden_voxels

NORM_EPS = 1e-6


@dataclass(frozen=True)
class SmitConfig(IbotConfig):
    """Defaults are the SMIT benchmark's."""

    image_weight: float = 0.1  # "ITD"
    patch_weight: float = 0.1  # "MPD"
    loss: str = "l2"  # of hidden voxels, weight 1: paper; "l1": SMIT code

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, loss=tuple(ERRORS))


class Smit(Ibot):
    """Reconstruction of hidden voxels + 0.1 MPD + 0.1 ITD.

    Both distillations read `tokens["distill"]` (a Swin's merge output of its third stage) through one LayerNorm; the
    image token is the mean of the normalised tokens, hidden ones included. A Swin's last stage learns from the
    reconstruction alone, which reads the bottleneck.
    """

    Config = SmitConfig
    SOURCE = "SMIT, Jiang et al. 2022 (arXiv:2205.10342): MIP + 0.1 MPD + 0.1 ITD; settings of the SMIT benchmark"
    UNTRAINED: ClassVar[Mapping[str, tuple[str, ...]]] = COARSEST_MAP_HIDDEN_TOKENS
    config: SmitConfig

    def __init__(self, spec: EncoderSpec, recipe: PretrainRecipe, config: Any = None) -> None:
        super().__init__(spec, recipe, config)
        self.student["decoder"] = DepthToSpaceHead(spec.channels[-1], spec.strides[-1])

    def heads(self) -> Mapping[str, int]:
        """Separate heads on the same tokens."""
        return dict.fromkeys(("image_head", "patch_head"), self.spec.token_channels)

    def parts(self, drop_path: float) -> dict[str, nn.Module]:
        """Encoder, heads and the norm in front of them."""
        return super().parts(drop_path) | {"norm": nn.LayerNorm(self.spec.token_channels, eps=NORM_EPS)}

    def tap(self, parts: nn.ModuleDict, volumes: Tensor, mask: Tensor | None = None) -> Taps:
        """Normalised distillation tokens and their mean."""
        features = encoder_of(parts)(volumes, mask)
        tokens = parts["norm"](features.tokens["distill"])
        return Taps(tokens.mean(1), tokens, features.maps[-1])

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"loss": weighted sum of "reconstruction", "patch" and "image" (none of them weighted), and health}."""
        found, config, spec = self.distil(batch), self.config, self.spec
        hidden = hidden_voxels(batch["mask"], spec.token_grid(batch["views"].shape[2:]), spec.token_stride)
        image = self.student["decoder"](found.seen.coarsest)
        reconstruction = voxel_error(image, batch["image"], config.loss, hidden=hidden)
        parts = {"reconstruction": reconstruction, "patch": found.patch, "image": found.image}
        loss = reconstruction + config.patch_weight * found.patch + config.image_weight * found.image
        return {"loss": loss, **{name: part.detach() for name, part in parts.items()}, **found.health}
