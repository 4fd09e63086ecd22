"""What the tasks with a teacher share: two networks with projection heads, centred targets, temperatures, momentum."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nnssl.encoders.base import Encoder, EncoderSpec
from nnssl.layers.heads import ProjectionHead, Prototypes
from nnssl.losses import distillation
from nnssl.losses.health import feature_health, target_health
from nnssl.losses.processes import SCOPES
from nnssl.losses.prototypes import Aims, prototype_loss
from nnssl.losses.schedules import cosine, linear_warmup
from nnssl.pretext.base import PretextTask, check_settings, encoder_of
from nnssl.pretext.teacher import Teacher
from nnssl.recipe import PretrainRecipe
from nnssl.transforms.masking import HiddenTokens


@dataclass(frozen=True)
class DistillationConfig:
    """Settings of every task with a teacher; defaults are those of the SMIT benchmark."""

    drop_path: float = 0.3  # of the student; not in the paper; SMIT code 0.3, there of the teacher too
    prototypes: int = 8192  # of each head
    hidden: int = 2048
    bottleneck: int = 256
    prototype_gain: str = "fixed"  # at 1: SMIT, DINO v1; "trained": DINOv2, 3DINO
    student_temperature: float = 0.1
    teacher_temperature: tuple[float, float] = (0.04, 0.07)  # linear, then constant
    teacher_warmup: float = 0.06  # share of the steps: 30 of 500 epochs
    momentum: tuple[float, float] = (0.996, 1.0)  # of the teacher, cosine over the run; SMIT code: over each epoch anew
    centering: str = "softmax"  # with a moving centre; "sinkhorn": DINOv2, 3DINO
    centre_momentum: float = 0.9  # softmax centring only; not in the paper
    scope: str = "global"  # rows of all processes make one target problem; "process": SMIT code, each its own

    def __post_init__(self) -> None:
        check_settings(
            self,
            positive=("prototypes", "hidden", "bottleneck", "student_temperature", "teacher_temperature"),
            shares=("drop_path", "teacher_warmup", "momentum", "centre_momentum"),
            prototype_gain=("fixed", "trained"),
            centering=("softmax", "sinkhorn"),
            scope=SCOPES,
        )


class Taps(NamedTuple):
    """What is distilled of a stack of volumes."""

    image: Tensor  # (rows, D) one token per volume
    patches: Tensor  # (rows, N, D') one token per cell of the token grid
    coarsest: Tensor  # (rows, channels[-1], X, Y, Z)


class SelfDistillation(PretextTask):
    """A student that predicts what a teacher, its moving average, says about the same volumes."""

    config: Any

    def __init__(self, spec: EncoderSpec, recipe: PretrainRecipe, config: Any = None) -> None:
        super().__init__(spec, recipe, config)
        self.student = nn.ModuleDict(self.parts(self.config.drop_path))
        self.teacher = Teacher(self.parts(drop_path=0.0))
        self.teacher.copy(self.trained_parts())  # SMIT code: starts on its own
        self.temperatures = dict.fromkeys(self.heads(), self.config.teacher_temperature[0])
        for head in self.heads():
            self.register_buffer(_centre(head), torch.zeros(1, self.config.prototypes))
        self._mean_logits: dict[str, Tensor] = {}  # of the last training forward, until `after_step` uses them

    @abstractmethod
    def heads(self) -> Mapping[str, int]:
        """Name -> width of the tokens that each projection head reads."""

    def parts(self, drop_path: float) -> dict[str, nn.Module]:
        """Freshly initialised networks that student and teacher both have."""
        size = {field: getattr(self.config, field) for field in ("hidden", "bottleneck", "prototypes")}
        trained_gain = self.config.prototype_gain == "trained"
        heads = {name: ProjectionHead(width, **size, trained_gain=trained_gain) for name, width in self.heads().items()}
        return {"encoder": self.new_encoder(drop_path), **heads}

    def tap(self, parts: nn.ModuleDict, volumes: Tensor, mask: Tensor | None = None) -> Taps:
        """Tokens of a student or teacher: the encoder's summary and its deepest patch tokens."""
        features = encoder_of(parts)(volumes, mask)
        return Taps(features.summary, features.tokens["patch"], features.maps[-1])

    @torch.no_grad()
    def teach(self, volumes: Tensor) -> Taps:
        """The teacher's tokens; it sees everything."""
        return self.tap(self.teacher.parts, volumes)

    @torch.no_grad()
    def targets(self, head: str, tokens: Tensor, position: Tensor | None = None) -> Tensor:
        """Targets (rows, K) of teacher tokens (rows, D).

        Args:
            position: only these rows get targets (M, K); a moving centre follows all rows.
        """
        config = self.config
        moves = config.centering == "softmax" and self.training
        if position is not None and not moves:
            tokens, position = tokens.index_select(0, position), None

        def logits_of(unit: Tensor, prototypes: Prototypes) -> Tensor:
            if moves:  # logits are linear in these rows: the sum of all logits costs one row
                total = prototypes(unit.sum(0, keepdim=True))
                self._mean_logits[head] = distillation.mean_logits(total, len(unit), config.scope)
            return prototypes(unit if position is None else unit.index_select(0, position))

        logits = self.teacher.parts[head](tokens, logits_of)
        if config.centering == "sinkhorn":
            return distillation.sinkhorn_knopp(logits, self.temperatures[head], scope=config.scope)
        return distillation.centred_softmax(logits, getattr(self, _centre(head)), self.temperatures[head])

    def image_loss(self, head: str, seen: Tensor, taught: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy of each view's token with the target of the other view, and the health of both networks."""
        targets = self.targets(head, swap_views(taught))
        loss = self.distance(head, seen, distillation.dino_aims(targets))
        return loss, {**feature_health(taught), **target_health(targets)}

    def patch_loss(
        self, head: str, seen: Tensor, taught: Tensor, hidden: HiddenTokens, *, crops: int | Tensor
    ) -> Tensor:
        """Cross entropy of hidden tokens with their own targets: mean over those of a view, sum of these / `crops`."""
        targets = self.targets(head, taught.flatten(0, 1), hidden.position)
        tokens = seen.flatten(0, 1).index_select(0, hidden.position)
        return self.distance(head, tokens, distillation.ibot_aims(targets, hidden.weight, crops))

    def distance(self, head: str, tokens: Tensor, aims: Aims) -> Tensor:
        """Weighted sum of the cross entropies of student tokens (rows, D) with their targets."""

        def loss(unit: Tensor, prototypes: Prototypes) -> Tensor:
            weights = prototypes.weight_g, prototypes.weight_v
            return prototype_loss(unit, weights, aims=aims, temperature=self.config.student_temperature)

        return self.student[head](tokens, loss)

    def begin_step(self, step: int, total: int) -> None:
        """Set the teacher's temperature of each head."""
        warmup = round(self.config.teacher_warmup * total)
        for head in self.temperatures:
            since = step - round(self.ramp_start(head) * total)
            self.temperatures[head] = linear_warmup(max(since, 0), warmup, *self.config.teacher_temperature)

    def ramp_start(self, head: str) -> float:
        """Share of the steps after which the temperature of a head begins to rise."""
        return 0.0

    def after_step(self, step: int, total: int) -> None:
        """Move the teacher with the momentum of this step, and the centres where softmax centring is used."""
        self.teacher.follow(self.trained_parts(), cosine(step, total, *self.config.momentum))
        for head, mean in self._mean_logits.items():
            centre = getattr(self, _centre(head))
            centre.copy_(distillation.moved_centre(centre, mean, self.config.centre_momentum))
        self._mean_logits.clear()

    def result(self) -> Encoder:
        """The teacher's encoder."""
        return encoder_of(self.teacher.parts)


def swap_views(rows: Tensor) -> Tensor:
    """(2B, ...) view-major with the two halves exchanged: row r then holds the other view of its volume."""
    return torch.cat(rows.chunk(2)[::-1])


def _centre(head: str) -> str:
    """Name of a head's centre: "dino_centre" of "dino_head"."""
    return f"{head.removesuffix('_head')}_centre"
