"""3DINO: self-distillation of a 3D encoder between crops of one volume (DINO + iBOT + KoLeo; Xu et al. 2025)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnssl.encoders import build_encoder
from nnssl.encoders.base import Encoder, Features, IntensityRange, check_crop, to_encoder_range
from nnssl.layers.heads import ProjectionHead
from nnssl.losses import distillation
from nnssl.losses.schedules import cosine, linear_warmup
from nnssl.pretext.base import PretextTask
from nnssl.pretext.teacher import Teacher
from nnssl.recipe import PretrainRecipe
from nnssl.transforms import random_intensity
from nnssl.transforms.masking import stratified_masks
from nnssl.transforms.views import CropRule, random_view

GLOBAL_VIEWS = 2  # the objective pairs exactly two


@dataclass(frozen=True)
class ThreeDinoConfig:
    """Defaults are those of the published weights (reference `ssl3d_default_config.yaml`); crop sizes: the recipe's."""

    local_views: int = 8
    global_area: tuple[float, float] = (0.48, 1.0)  # share of the plane; not in the paper's main text
    local_area: tuple[float, float] = (0.16, 0.48)
    global_depth: tuple[float, float] = (0.5, 1.0)  # share of the depth edge
    local_depth: tuple[float, float] = (0.2, 0.5)
    depth_axis: int = 2  # the coarse axis of the stored volumes: 0 X, 1 Y, 2 Z
    prototypes: int = 65536  # of each head; DINO and iBOT heads are separate (DINOv2's default shares one)
    hidden: int = 2048
    bottleneck: int = 256
    mask_probability: float = 0.5  # share of global crops with hidden tokens
    mask_ratio: tuple[float, float] = (0.2, 0.75)  # share of hidden tokens; uniform (DINOv2: 0.1-0.5 in blocks)
    ibot_denominator: str = "all"  # reference: all 2B global crops; "masked": only those with hidden tokens
    momentum: tuple[float, float] = (0.992, 1.0)  # of the teacher, cosine
    teacher_temperature: tuple[float, float] = (0.04, 0.07)  # linear, then constant
    teacher_warmup: float = 0.3  # share of the steps: 37,500 of 125,000
    student_temperature: float = 0.1
    centering: str = "sinkhorn"  # paper and reference; "softmax": DINO v1
    centre_momentum: float = 0.9  # softmax centring only
    koleo_weight: float = 0.1
    drop_path: float = 0.3  # of the student, the same in every block
    clip: bool = True  # back to [0, 1] after intensity augmentation; reference: no, sharpened crops leave the range

    def __post_init__(self) -> None:
        _check_choice("centering", self.centering, ("sinkhorn", "softmax"))
        _check_choice("ibot_denominator", self.ibot_denominator, ("all", "masked"))
        _check_choice("depth_axis", self.depth_axis, (0, 1, 2))
        for name in ("prototypes", "hidden", "bottleneck", "student_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"threedino setting {name}={getattr(self, name)}: must be above 0")
        if self.local_views < 0:
            raise ValueError(f"threedino setting local_views={self.local_views}: must be 0 or more")
        if min(self.teacher_temperature) <= 0:
            raise ValueError(f"threedino setting teacher_temperature={self.teacher_temperature}: must be above 0")
        for name in ("mask_probability", "mask_ratio", "momentum", "teacher_warmup", "centre_momentum"):
            value = getattr(self, name)
            if not all(0 <= part <= 1 for part in (value if isinstance(value, tuple) else (value,))):
                raise ValueError(f"threedino setting {name}={value}: must lie between 0 and 1")


class ThreeDino(PretextTask):
    """Student and teacher with a DINO and an iBOT head each; works with any encoder of the table.

    `prepare` -> {"global": (2, 1, *global_crop), "local": (L, 1, *local_crop)} in [0, 1]; after batching, `augment` ->
    view-major stacks "global" (2B, 1, ...) and "local" (L * B, 1, ...) in the encoder's range, with "mask" (2B, N),
    "mask_position" (M,) and "mask_weight" (M,).
    """

    Config = ThreeDinoConfig
    config: ThreeDinoConfig

    def __init__(
        self, encoder: str, recipe: PretrainRecipe, intensity: IntensityRange, config: ThreeDinoConfig | None = None
    ) -> None:
        super().__init__()
        self.config = config or ThreeDinoConfig()
        self.recipe = recipe
        self.encoder_range = intensity.encoder_range
        self.crop_rules = (
            CropRule(self.config.global_area, self.config.global_depth),
            CropRule(self.config.local_area, self.config.local_depth),
        )
        self.student = nn.ModuleDict(self._parts(encoder, intensity, self.config.drop_path))
        self.teacher = Teacher(self._parts(encoder, intensity, 0.0))
        self.teacher.copy(self.trained_parts())
        spec = self._encoder(self.student).spec
        check_crop(spec, recipe.local_crop)
        x, y, z = (side // spec.strides[-1] for side in recipe.global_crop)
        self.tokens = x * y * z
        self.teacher_temperature = self.config.teacher_temperature[0]
        self.dino_centre: Tensor
        self.ibot_centre: Tensor
        for name in ("dino_centre", "ibot_centre"):
            self.register_buffer(name, torch.zeros(1, self.config.prototypes))
        self._mean_logits: dict[str, Tensor] = {}  # of the last training forward, until `after_step` uses them

    def prepare(self, volume: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Two global and `local_views` local crops of one volume (1, X, Y, Z), resized, flipped and turned."""
        global_rule, local_rule = self.crop_rules
        axis, large, small = self.config.depth_axis, self.recipe.global_crop, self.recipe.local_crop
        views = {
            "global": [
                random_view(volume, global_rule, size=large, depth_axis=axis, generator=generator)
                for _ in range(GLOBAL_VIEWS)
            ],
            "local": [
                random_view(volume, local_rule, size=small, depth_axis=axis, generator=generator)
                for _ in range(self.config.local_views)
            ],
        }
        return {name: torch.stack(crops) for name, crops in views.items() if crops}

    @torch.no_grad()
    def augment(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Intensity per family of views, token masks, encoder range; random numbers come from `generator` alone."""
        device = batch["global"].device
        views = {name: _view_major(crops) for name, crops in batch.items()}
        with torch.autocast(device.type, enabled=False):
            first, second = views["global"]
            random_intensity.contrast_noise_or_histogram(first, generator)
            random_intensity.smooth_or_sharpen(first, generator, 1.0)
            random_intensity.contrast_noise_or_histogram(second, generator)
            random_intensity.smooth_or_sharpen(second, generator, 0.1)
            random_intensity.gibbs(second, generator, 0.2)
            if "local" in views:
                local = views["local"].flatten(0, 1)
                random_intensity.contrast_noise_or_histogram(local, generator)
                random_intensity.smooth(local, generator, 0.5)
        ready = {name: self._encoder_input(crops.flatten(0, 1)) for name, crops in views.items()}
        masks = stratified_masks(
            len(ready["global"]),
            self.tokens,
            generator,
            probability=self.config.mask_probability,
            shares=self.config.mask_ratio,
        )
        for name, value in masks._asdict().items():
            key = name if name == "mask" else f"mask_{name}"
            ready[key] = value.to(device, non_blocking=True)
        return ready

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss of one augmented batch.

        Returns:
            "loss" = "dino" + "ibot" + "koleo" (the last one already weighted), and health numbers: "feature_std"
            (teacher class tokens; about 1 = spread, 0 = collapse), "teacher_entropy" (nats, at most ln prototypes),
            "prototype_usage" (distinct winners / possible ones).
        """
        masks = batch["mask_position"], batch["mask_weight"]
        dino_targets, ibot_targets, teacher_class = self._targets(batch["global"], masks[0])
        globally = self._encoder(self.student)(batch["global"], batch["mask"])
        dino = self._dino(dino_targets, globally.summary, batch.get("local"))
        ibot = self._ibot(ibot_targets, _tokens_at(globally, masks[0]), batch["mask"], masks[1])
        views = globally.summary.chunk(GLOBAL_VIEWS)
        koleo = self.config.koleo_weight * torch.stack([distillation.koleo_loss(view) for view in views]).sum()
        return {
            "loss": dino + ibot + koleo,
            "dino": dino.detach(),
            "ibot": ibot.detach(),
            "koleo": koleo.detach(),
            "feature_std": distillation.feature_spread(teacher_class),
            "teacher_entropy": distillation.target_entropy(dino_targets),
            "prototype_usage": distillation.prototype_usage(dino_targets),
        }

    def begin_step(self, step: int, total: int) -> None:
        """Set the teacher's temperature."""
        warmup = round(self.config.teacher_warmup * total)
        self.teacher_temperature = linear_warmup(step, warmup, *self.config.teacher_temperature)

    def after_step(self, step: int, total: int) -> None:
        """Move the teacher with the momentum of this step, and the centres where softmax centring is used."""
        self.teacher.follow(self.trained_parts(), cosine(step, total, *self.config.momentum))
        for name, mean in self._mean_logits.items():
            centre = getattr(self, f"{name}_centre")
            centre.copy_(distillation.moved_centre(centre, mean, self.config.centre_momentum))
        self._mean_logits.clear()

    def trained_parts(self) -> dict[str, nn.Module]:
        """The student's encoder, dino_head and ibot_head."""
        return dict(self.student.items())

    def result(self) -> Encoder:
        """The teacher's encoder, as the reference publishes."""
        return self._encoder(self.teacher.parts)

    def _parts(self, name: str, intensity: IntensityRange, drop_path: float) -> dict[str, nn.Module]:
        encoder = build_encoder(name, native_crop=self.recipe.global_crop, intensity=intensity, drop_path=drop_path)
        size = {field: getattr(self.config, field) for field in ("hidden", "bottleneck", "prototypes")}
        heads = {head: ProjectionHead(encoder.spec.channels[-1], **size) for head in ("dino_head", "ibot_head")}
        return {"encoder": encoder, **heads}

    @staticmethod
    def _encoder(parts: nn.ModuleDict) -> Encoder:
        encoder = parts["encoder"]
        assert isinstance(encoder, Encoder)
        return encoder

    def _encoder_input(self, crops: Tensor) -> Tensor:
        """In place: a fresh batch costs more than all arithmetic on it."""
        if self.config.clip:
            crops.clamp_(0, 1)
        return to_encoder_range(crops, self.encoder_range, out=crops)

    @torch.no_grad()
    def _targets(self, crops: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """DINO targets (2B, K) with swapped views, iBOT targets (M, K), the teacher's class tokens (2B, dim)."""
        parts = self.teacher.parts
        features = self._encoder(parts)(crops)
        swapped = torch.cat(features.summary.chunk(GLOBAL_VIEWS)[::-1])
        dino = self._centred("dino", parts["dino_head"](swapped))
        return dino, self._centred("ibot", parts["ibot_head"](_tokens_at(features, position))), features.summary

    def _centred(self, name: str, logits: Tensor) -> Tensor:
        if self.config.centering == "sinkhorn":
            return distillation.sinkhorn_knopp(logits, self.teacher_temperature)
        if self.training:
            self._mean_logits[name] = distillation.mean_logits(logits)
        return distillation.centred_softmax(logits, getattr(self, f"{name}_centre"), self.teacher_temperature)

    def _dino(self, targets: Tensor, class_tokens: Tensor, local_crops: Tensor | None) -> Tensor:
        """Mean cross entropy over the pairs of (student view, other or global teacher view)."""
        head = self.student["dino_head"]
        images = len(class_tokens)
        if local_crops is not None:
            local = self._encoder(self.student)(local_crops).summary
            class_tokens = torch.cat([class_tokens, local])
        logits = head(class_tokens)
        parts = distillation.dino_losses(
            targets, logits[:images], logits[images:], temperature=self.config.student_temperature
        )
        return parts[0] + parts[1]

    def _ibot(self, targets: Tensor, tokens: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
        crops: int | Tensor = len(mask)
        if self.config.ibot_denominator == "masked":
            crops = mask.any(1).sum().clamp(min=1)
        logits = self.student["ibot_head"](tokens)
        return distillation.ibot_loss(targets, logits, weight, crops=crops, temperature=self.config.student_temperature)


def _view_major(crops: Tensor) -> Tensor:
    """(B, views, 1, ...) of any float type -> an own, contiguous float32 copy (views, B, 1, ...)."""
    return crops.transpose(0, 1).to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _tokens_at(features: Features, position: Tensor) -> Tensor:
    """(M, dim) tokens of the coarsest map (B, dim, X, Y, Z) at flat positions over (B, X * Y * Z)."""
    return features.maps[-1].flatten(2).transpose(1, 2).flatten(0, 1).index_select(0, position)


def _check_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"threedino setting {name}={value!r}: allowed are {', '.join(map(str, allowed))}")
