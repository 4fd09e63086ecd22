"""What every pretext task is."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnssl.encoders import build_encoder
from nnssl.encoders.base import Encoder, EncoderSpec, check_crop, to_encoder_range
from nnssl.recipe import PretrainRecipe
from nnssl.transforms.views import WHOLE, ViewSampling, plain_views

# SMIT benchmark: AdamW 2e-4, cosine, 30 of 500 epochs warm-up (reference: 6e-4 = 1e-4 x batch 6, 20 epochs, the first
# of which at a rate of 0). The paper names no weight decay and no clipping: as the reference, PyTorch's 0.01 on every
# parameter, and none. Views of 96^3 are the plan's default; data sets and encoders that need others get others.
SMIT_RECIPE: dict[str, Any] = {
    "base_lr": 2e-4,
    "lr_rule": "constant",
    "min_lr": 0.0,
    "warmup_fraction": 0.06,
    "weight_decay": (0.01, 0.01),
    "decay_all": True,
    "clip_norm": 0.0,
    "layer_decay": 1.0,
    "patch_embed_lr": 1.0,
    "freeze_last_layer": 0.002,  # the first of 500 epochs
}


class PretextTask(nn.Module, ABC):
    """A self-supervised objective around one encoder.

    The training loop calls, in this order: `prepare` (data workers), `augment`, `begin_step`, `forward`,
    the optimiser, `after_step`. `student` holds what is trained; its first entry is "encoder".

    A run is stopped when its health numbers look dead, so a task reports them of what its objective trains
    (`losses.health`): the rows that a head classifies or contrasts, the teacher's image tokens, the cells of the map
    that a decoder reads (`map_health`). A ViT's class token is nothing to a task on voxels: it may die in a good run.

    Args:
        spec: the encoder; its native crop is the crop of the views.
        recipe: crop sizes and the rest of the optimisation.
        config: settings of the task; default: the paper's.
    """

    Config: ClassVar[type]  # frozen dataclass; defaults are the paper's
    RECIPE: ClassVar[Mapping[str, Any]] = {}  # fields of PretrainRecipe in which the paper differs from its defaults
    SOURCE: ClassVar[str]  # paper and equation
    UNTRAINED: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # encoder family -> fnmatch patterns of parameters of the
    # encoder that the objective gives no gradient; every other one gets some
    MASKS: ClassVar[bool] = False  # whether tokens are hidden from the student

    config: Any
    student: nn.ModuleDict

    def __init__(self, spec: EncoderSpec, recipe: PretrainRecipe, config: Any = None) -> None:
        super().__init__()
        if self.MASKS and not spec.maskable:
            raise ValueError(
                f"pretext task {type(self).__name__} hides tokens, which encoder {spec.name!r} cannot; "
                "take a ViT, Swin or Primus, or a task without masks (nnssl_pretrain --list)"
            )
        check_crop(spec, recipe.global_crop)
        self.spec, self.recipe, self.config = spec, recipe, config or self.Config()
        self.tokens = math.prod(spec.token_grid(recipe.global_crop))

    def prepare(self, volume: Tensor, generator: torch.Generator) -> dict[str, Any]:
        """Geometry only, in a data worker: one volume (1, X, Y, Z) in [0, 1] -> named stacks or lists of V views.

        The generator belongs to the sample's number in the run, so token masks that are drawn here ("mask", (V, N)
        bool, True = hidden) do not depend on how many processes share the batch. Here: one random crop as "views".
        """
        return {"views": self.crops(volume, 1, generator)}

    @torch.no_grad()
    def augment(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """On the training device, for the whole batch of collated samples (B, V, ...); the place to change intensity.

        The given batch is used up: its memory may be changed. All processes hold the same generator; see
        `losses.processes.own_generator`.

        Returns:
            View-major stacks (V * B, ...) of every entry; "views" in the encoder's range, "image" the same in [0, 1].
        """
        ready = {name: view_major(stack) for name, stack in batch.items()}
        views = to_encoder_range(ready["views"], self.spec.intensity.encoder_range)
        return ready | {"image": ready["views"], "views": views}

    @abstractmethod
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"loss": scalar to minimise, further scalars to log}; changes no state.

        The others hold no gradient; "feature_std" and "effective_rank" are always among them, "teacher_entropy" and
        "prototype_usage" where there is a teacher.
        """

    def begin_step(self, step: int, total: int) -> None:
        """Set what depends on the position in training (teacher temperature) before step `step` of `total`."""

    def after_step(self, step: int, total: int) -> None:
        """Move teachers and centres after the optimiser's step."""

    def trained_parts(self) -> dict[str, nn.Module]:
        """Sub-networks that the optimiser trains, by name; gradients are clipped per part. "encoder" is one of them."""
        return dict(self.student.items())

    def result(self) -> Encoder:
        """The encoder to keep (a teacher where the method has one)."""
        return self.encoder

    @property
    def encoder(self) -> Encoder:
        """The encoder in training."""
        return encoder_of(self.student)

    def new_encoder(self, drop_path: float = 0.0) -> Encoder:
        """A freshly initialised encoder as `spec` says."""
        spec = self.spec
        return build_encoder(
            spec.name,
            native_crop=spec.native_crop,
            intensity=spec.intensity,
            drop_path=drop_path,
            options=spec.options,
        )

    def crops(self, volume: Tensor, count: int, generator: torch.Generator, sampling: ViewSampling = WHOLE) -> Tensor:
        """(count, 1, *global_crop) random crops without resizing; see `plain_views`."""
        return plain_views(volume, self.recipe.global_crop, count=count, generator=generator, sampling=sampling)


def encoder_of(parts: nn.ModuleDict) -> Encoder:
    """The entry "encoder" of a student or a teacher."""
    encoder = parts["encoder"]
    assert isinstance(encoder, Encoder)
    return encoder


def view_major(stack: Tensor) -> Tensor:
    """(B, V, ...) -> (V * B, ...): first views of all samples, then second views; floats are float32.

    Nothing is copied where memory holds that order already, as in batches of `data.volumes`: `augment` owns its batch.
    """
    dtype = torch.float32 if stack.is_floating_point() else stack.dtype
    return stack.transpose(0, 1).to(dtype).contiguous().flatten(0, 1)


def check_settings(config: Any, *, positive: tuple[str, ...] = (), shares: tuple[str, ...] = (), **words: Any) -> None:
    """Raise a ValueError that says what a setting may be; tuples are checked entry by entry.

    Args:
        positive: settings that must be above 0.
        shares: settings that must lie between 0 and 1.
        words: setting -> allowed values.
    """
    name = type(config).__name__.removesuffix("Config")
    for key in (*positive, *shares):
        value = getattr(config, key)
        parts = value if isinstance(value, tuple) else (value,)
        if key in positive and not all(part > 0 for part in parts):
            raise ValueError(f"{name} setting {key}={value}: must be above 0")
        if key in shares and not all(0 <= part <= 1 for part in parts):
            raise ValueError(f"{name} setting {key}={value}: must lie between 0 and 1")
    for key, allowed in words.items():
        if getattr(config, key) not in allowed:
            raise ValueError(
                f"{name} setting {key}={getattr(config, key)!r}: allowed are {', '.join(map(str, allowed))}"
            )
