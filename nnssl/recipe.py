"""The "nnssl" section of a plans file: what fine-tuning and pretraining read from it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FineTuneRecipe:
    """Training of a segmentor on a frozen encoder (3DINO, Methods: AdamW 1e-4, warm-up 3,000 of 30,000 iterations)."""

    lr: float = 1e-4
    weight_decay: float = 0.01  # PyTorch's AdamW default, as in the reference
    epochs: int = 120  # x iterations_per_epoch = 30,000 iterations in the paper
    iterations_per_epoch: int = 250
    val_iterations: int = 50
    warmup_fraction: float = 0.1  # 3,000 of 30,000 iterations
    foreground_oversampling: float = 0.33  # nnU-Net; the paper draws 1:1
    save_every: int = 10  # epochs between writes of checkpoint_latest

    def __post_init__(self) -> None:
        _check_positive(self, ("lr", "epochs", "iterations_per_epoch", "val_iterations", "save_every"))
        _check_fraction(self, ("warmup_fraction", "foreground_oversampling"))


@dataclass(frozen=True)
class PretrainRecipe:
    """Optimisation of a pretext task (3DINO: spec of the standard stage)."""

    global_crop: tuple[int, int, int] = (96, 96, 96)  # voxels, X Y Z
    local_crop: tuple[int, int, int] = (48, 48, 48)
    steps: int = 125_000
    batch_size: int = 512  # over all devices
    base_lr: float = 2e-3  # at batch 1024; lr = base_lr * sqrt(batch_size / 1024)
    warmup_fraction: float = 0.1  # 12,500 of 125,000 steps
    min_lr: float = 1e-6
    weight_decay: tuple[float, float] = (0.04, 0.4)  # cosine from, to
    clip_norm: float = 3.0  # per sub-network
    layer_decay: float = 0.9
    patch_embed_lr: float = 0.2  # extra factor
    freeze_last_layer: float = 0.01  # fraction of the steps in which the prototypes rest
    save_every: int = 500  # steps between checkpoints
    seed: int = 0

    def __post_init__(self) -> None:
        _check_positive(self, ("steps", "batch_size", "base_lr", "clip_norm", "layer_decay", "save_every"))
        _check_fraction(self, ("warmup_fraction", "freeze_last_layer"))


def _check_positive(recipe: object, names: tuple[str, ...]) -> None:
    for name in names:
        if not getattr(recipe, name) > 0:
            raise ValueError(f"{type(recipe).__name__}.{name}={getattr(recipe, name)}: must be above 0")


def _check_fraction(recipe: object, names: tuple[str, ...]) -> None:
    for name in names:
        if not 0 <= getattr(recipe, name) <= 1:
            raise ValueError(f"{type(recipe).__name__}.{name}={getattr(recipe, name)}: must lie between 0 and 1")
