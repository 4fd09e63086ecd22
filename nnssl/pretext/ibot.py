"""iBOT: DINO on masked views, and hidden patch tokens that predict the teacher's (Zhou et al. 2022)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from nnssl.losses.health import feature_health
from nnssl.pretext.base import check_settings
from nnssl.pretext.dino import VIEWS, Dino, DinoConfig
from nnssl.pretext.self_distillation import Taps
from nnssl.transforms.masking import hidden_tokens, random_mask


@dataclass(frozen=True)
class IbotConfig(DinoConfig):
    """Settings of the SMIT benchmark; heads are separate (SMIT code and iBOT's paper can share one)."""

    mask_ratio: float = 0.75  # of every view, exactly ceil(ratio * N) tokens; SMIT code 0.7; iBOT 0.1-0.5 in blocks
    image_weight: float = 1.0  # not in the benchmark; iBOT 1
    patch_weight: float = 1.0
    patch_ramp_start: float = 0.0  # share of the steps before the patch temperature rises; SMIT code 0.06: epoch 30

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, positive=("mask_ratio",), shares=("mask_ratio", "patch_ramp_start"))


class Distilled(NamedTuple):
    """Both losses of one batch, the student's tokens, and health."""

    image: Tensor
    patch: Tensor
    seen: Taps
    health: dict[str, Tensor]


class Ibot(Dino):
    """Cross-view loss of the image token plus same-view loss of the hidden tokens; the teacher sees whole views."""

    Config = IbotConfig
    SOURCE = "iBOT, Zhou et al. 2022 (arXiv:2111.07832), eq. 1-3; as in the SMIT benchmark"
    UNTRAINED: ClassVar[Mapping[str, tuple[str, ...]]] = {"swin": ("norm[0-2].*",)}
    MASKS = True
    config: IbotConfig

    def heads(self) -> Mapping[str, int]:
        """Separate heads for image and patch tokens."""
        return {"image_head": self.spec.channels[-1], "patch_head": self.spec.token_channels}

    def ramp_start(self, head: str) -> float:
        """The patch head may start later."""
        return self.config.patch_ramp_start if head == "patch_head" else 0.0

    def prepare(self, volume: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Two random crops "views" and "mask" (2, N): each view hides its own tokens."""
        views = super().prepare(volume, generator)
        masks = [random_mask(self.tokens, self.config.mask_ratio, generator) for _ in range(VIEWS)]
        return views | {"mask": torch.stack(masks)}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"loss": weighted sum of "image" and "patch" (both in nats, not weighted), and health}."""
        found, config = self.distil(batch), self.config
        loss = config.image_weight * found.image + config.patch_weight * found.patch
        return {"loss": loss, "image": found.image.detach(), "patch": found.patch.detach(), **found.health}

    def distil(self, batch: dict[str, Tensor]) -> Distilled:
        """Both losses of the student on masked views against the teacher on whole ones."""
        seen, taught = self.tap(self.student, batch["views"], batch["mask"]), self.teach(batch["views"])
        image, health = self.image_loss("image_head", seen.image, taught.image)
        if not self.config.image_weight:  # nothing trains the image token then
            health = feature_health(taught.patches.flatten(0, 1))
        hidden = hidden_tokens(batch["mask"])
        patch = self.patch_loss("patch_head", seen.patches, taught.patches, hidden, crops=len(seen.image))
        return Distilled(image, patch, seen, health)
