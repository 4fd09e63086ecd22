"""3DINO: self-distillation of a 3D encoder between crops of one volume (DINO + iBOT + KoLeo; Xu et al. 2025)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from nnssl.encoders.base import EncoderSpec, check_crop, to_encoder_range
from nnssl.losses import distillation
from nnssl.losses.health import feature_health, target_health
from nnssl.losses.processes import own_rows, rank, summed, world
from nnssl.pretext.base import check_settings, view_major
from nnssl.pretext.self_distillation import DistillationConfig, SelfDistillation, swap_views
from nnssl.recipe import PretrainRecipe
from nnssl.transforms import random_intensity
from nnssl.transforms.masking import hidden_tokens, stratified_masks
from nnssl.transforms.views import CropRule, random_view

GLOBAL_VIEWS = 2  # the objective pairs exactly two
_ONE_OF_THREE = (random_intensity.contrast_noise_or_histogram, 0.8)
INTENSITY = (  # changes of first global, second global and local views, and how likely they are
    (_ONE_OF_THREE, (random_intensity.smooth_or_sharpen, 1.0)),
    (_ONE_OF_THREE, (random_intensity.smooth_or_sharpen, 0.1), (random_intensity.gibbs, 0.2)),
    (_ONE_OF_THREE, (random_intensity.smooth, 0.5)),
)


@dataclass(frozen=True)
class ThreeDinoConfig(DistillationConfig):
    """Defaults are those of the published weights (reference `ssl3d_default_config.yaml`); crop sizes: the recipe's."""

    local_views: int = 8
    global_area: tuple[float, float] = (0.48, 1.0)  # share of the plane; not in the paper's main text
    local_area: tuple[float, float] = (0.16, 0.48)
    global_depth: tuple[float, float] = (0.5, 1.0)  # share of the depth edge
    local_depth: tuple[float, float] = (0.2, 0.5)
    depth_axis: int = 2  # the coarse axis of the stored volumes: 0 X, 1 Y, 2 Z
    prototypes: int = 65536  # of each head; DINO and iBOT heads are separate (DINOv2's default shares one)
    prototype_gain: str = "trained"
    mask_probability: float = 0.5  # share of global crops with hidden tokens
    mask_ratio: tuple[float, float] = (0.2, 0.75)  # share of hidden tokens; uniform (DINOv2: 0.1-0.5 in blocks)
    ibot_denominator: str = "all"  # reference: all 2B global crops; "masked": only those with hidden tokens
    momentum: tuple[float, float] = (0.992, 1.0)  # of the teacher, cosine
    teacher_warmup: float = 0.3  # share of the steps: 37,500 of 125,000
    centering: str = "sinkhorn"  # paper and reference; "softmax": DINO v1
    koleo_weight: float = 0.1
    clip: bool = True  # back to [0, 1] after intensity augmentation; reference: no, sharpened crops leave the range

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(
            self,
            shares=("mask_probability", "mask_ratio"),
            ibot_denominator=("all", "masked"),
            depth_axis=(0, 1, 2),
        )
        if self.local_views < 0:
            raise ValueError(f"ThreeDino setting local_views={self.local_views}: must be 0 or more")


class ThreeDino(SelfDistillation):
    """Student and teacher with a DINO and an iBOT head each; works with any encoder that can hide tokens.

    `prepare` -> {"global": 2 times (1, *global_crop), "local": L times (1, *local_crop)} in [0, 1]; then `augment` ->
    view-major stacks "global" (2B, 1, ...) and "local" (L * B, 1, ...) in the encoder's range, with "mask" (2B, N).
    The result is the teacher, as in the reference.
    """

    Config = ThreeDinoConfig
    SOURCE = "3DINO, Xu et al. 2025 (Methods): DINO + iBOT + 0.1 KoLeo"
    UNTRAINED: ClassVar[Mapping[str, tuple[str, ...]]] = {"swin": ("norm[0-2].*",)}
    MASKS = True
    config: ThreeDinoConfig

    def __init__(self, spec: EncoderSpec, recipe: PretrainRecipe, config: Any = None) -> None:
        super().__init__(spec, recipe, config)
        check_crop(spec, recipe.local_crop)
        made = self.config
        self.views = {  # how, how large, how many
            "global": (CropRule(made.global_area, made.global_depth), recipe.global_crop, GLOBAL_VIEWS),
            "local": (CropRule(made.local_area, made.local_depth), recipe.local_crop, made.local_views),
        }

    def heads(self) -> Mapping[str, int]:
        """Heads of the class token and of the patch tokens."""
        return {"dino_head": self.spec.channels[-1], "ibot_head": self.spec.token_channels}

    def prepare(self, volume: Tensor, generator: torch.Generator) -> dict[str, list[Tensor]]:
        """Two global and `local_views` local crops of one volume (1, X, Y, Z), resized, flipped and turned."""
        draw = partial(random_view, volume, depth_axis=self.config.depth_axis, generator=generator)
        drawn = {name: [draw(rule, size=size) for _ in range(n)] for name, (rule, size, n) in self.views.items()}
        return {name: views for name, views in drawn.items() if views}

    @torch.no_grad()
    def augment(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Token masks, intensity per family of views, encoder range; random numbers come from `generator` alone."""
        images = len(batch["global"])
        ready = {name: view_major(crops) for name, crops in batch.items()}
        mask = self._masks(images, generator).to(ready["global"].device, non_blocking=True)
        share, finish = random_intensity.Share(images, rank(), world()), random_intensity.Change(self._finish)
        families = [*ready["global"].split(images), *(crops for name, crops in ready.items() if name == "local")]
        with torch.autocast(mask.device.type, enabled=False):
            for crops, kinds in zip(families, INTENSITY, strict=False):
                changes = random_intensity.draw(kinds, len(crops), generator, share=share)
                random_intensity.apply(crops, [*changes, finish])
        return ready | {"mask": mask}

    def _finish(self, crops: Tensor, _rows: object, out: Tensor | None) -> Tensor:
        """Clip, and map to the range of the encoder."""
        clipped = torch.clamp(crops, 0, 1, out=out) if self.config.clip else crops
        return to_encoder_range(clipped, self.spec.intensity.encoder_range, out=out)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"loss": "dino" + "ibot" + "koleo" (the last one already weighted), and health of the teacher}."""
        hidden, config = hidden_tokens(batch["mask"]), self.config
        seen, taught = self.tap(self.student, batch["global"], batch["mask"]), self.teach(batch["global"])
        crops: int | Tensor = len(batch["mask"])
        if config.ibot_denominator == "masked":
            crops = (summed(batch["mask"].any(1).sum()) / world()).clamp(min=1)
        # takes most memory, so it comes before the local crops keep some for the backward pass
        ibot = self.patch_loss("ibot_head", seen.patches, taught.patches, hidden, crops=crops)
        targets = self.targets("dino_head", swap_views(taught.image))
        dino = self._dino(targets, seen.image, batch.get("local"))
        views = seen.image.chunk(GLOBAL_VIEWS)
        koleo = torch.stack([distillation.koleo_loss(view, config.scope) for view in views]).sum()
        parts = {"dino": dino, "ibot": ibot, "koleo": config.koleo_weight * koleo}
        health = {**feature_health(taught.image), **target_health(targets)}
        return {"loss": torch.stack(list(parts.values())).sum(), **{k: v.detach() for k, v in parts.items()}, **health}

    def targets(self, head: str, tokens: Tensor, position: Tensor | None = None) -> Tensor:
        """Hidden tokens alone make the targets, with softmax centring too (DINOv2)."""
        return super().targets(head, tokens if position is None else tokens.index_select(0, position))

    def _masks(self, images: int, generator: torch.Generator) -> Tensor:
        """(2B, N): shares are stratified over the views of all processes, drawn alike on each of them."""
        views = GLOBAL_VIEWS * images * world()
        probability, shares = self.config.mask_probability, self.config.mask_ratio
        masks = stratified_masks(views, self.tokens, generator, probability=probability, shares=shares)
        return torch.cat([own_rows(view) for view in masks.chunk(GLOBAL_VIEWS)])

    def _dino(self, targets: Tensor, class_tokens: Tensor, local_crops: Tensor | None) -> Tensor:
        """Mean cross entropy over the pairs of (student view, other or global teacher view)."""
        if local_crops is not None:
            class_tokens = torch.cat([class_tokens, self.encoder(local_crops).summary])
        aims = distillation.dino_aims(targets, self.config.local_views if local_crops is not None else 0)
        return self.distance("dino_head", class_tokens, aims)
