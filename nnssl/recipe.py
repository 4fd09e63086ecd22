"""The "nnssl" section of a plans file: what fine-tuning and pretraining read from it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

LOSSES = ("ce_dice", "bce_dice")
SAMPLINGS = ("nnunet", "tumour_1to1")


@dataclass(frozen=True)
class FineTuneRecipe:
    """Training of a segmentor (3DINO, Methods: AdamW 1e-4, warm-up 3,000 of 30,000 iterations, encoder frozen).

    An epoch is nnU-Net's: `iterations_per_epoch` batches, however many cases there are.
    """

    lr: float = 1e-4
    weight_decay: float = 0.01  # PyTorch's AdamW default, as in the reference
    layer_decay: float = 0.75  # of a trained encoder, per layer below the top; MAE (arXiv:2111.06377) for ViT-L
    epochs: int = 120  # x iterations_per_epoch = 30,000 iterations in the paper
    iterations_per_epoch: int = 250
    val_iterations: int = 50
    warmup_fraction: float = 0.1  # 3,000 of 30,000 iterations
    early_stopping: int = 0  # stop after so many epochs without a better EMA pseudo Dice; 0: never
    loss: str = "ce_dice"  # "bce_dice": one sigmoid for one foreground label
    sampling: str = "nnunet"  # "tumour_1to1": every other crop holds foreground, the others hold none
    foreground_oversampling: float = 0.33  # "nnunet": the last third of a batch; the 3DINO reference draws 1:1
    inference_overlap: float = 0.5  # of neighbouring crops in nnssl_predict; the validation after training has 0.5
    save_every: int = 10  # epochs between writes of checkpoint_latest

    def __post_init__(self) -> None:
        _check_positive(self, ("lr", "layer_decay", "epochs", "iterations_per_epoch", "val_iterations", "save_every"))
        _check_not_negative(self, ("weight_decay", "early_stopping"))
        _check_fraction(self, ("layer_decay", "warmup_fraction", "foreground_oversampling"))
        _check_word(self, "loss", LOSSES)
        _check_word(self, "sampling", SAMPLINGS)
        if not 0 <= self.inference_overlap < 1:
            raise ValueError(
                f"FineTuneRecipe.inference_overlap={self.inference_overlap}: must be 0 or more and below 1"
            )


@dataclass(frozen=True)
class Preset:
    """Fine-tuning as a paper did it: recipe, network words and wishes for the plan (None: the encoder's own)."""

    source: str  # the paper
    finetune: FineTuneRecipe
    single_label: FineTuneRecipe  # instead of `finetune` where the data set has one foreground label
    decoder: str  # a name of nnssl.networks.DECODERS
    norm: str | None  # of the decoder; None: the decoder's default
    frozen: bool  # False: the encoder is trained too
    batch_size: int  # a wish: memory may lower it
    crop: tuple[int, int, int] | None = None  # voxels, X Y Z
    spacing_mm: tuple[float, float, float] | None = None  # X Y Z
    ct_window_hu: tuple[float, float] | None = None  # of the segmentation, where it differs from the pretraining's
    mr_percentiles: tuple[float, float] | None = None
    epoch_is_pass: bool = False  # an epoch shows every training case once; otherwise it is nnU-Net's

    def recipe_for(self, foreground_labels: int, *, training_cases: int, batch_size: int) -> FineTuneRecipe:
        """The recipe for a data set with that many foreground labels or regions, and cases in a fold's training."""
        chosen = self.single_label if foreground_labels == 1 else self.finetune
        if not self.epoch_is_pass:
            return chosen
        length = max(1, math.ceil(training_cases / batch_size))
        return replace(chosen, iterations_per_epoch=length, val_iterations=min(chosen.val_iterations, max(5, length)))


@dataclass(frozen=True)
class PretrainRecipe:
    """Optimisation of a pretext task (3DINO: spec of the standard stage); a task's RECIPE says what its paper changes.

    A run stops when it has looked collapsed for `collapse_steps` steps in a row after the warm-up: features that are
    all alike, or teacher targets that are all one-hot or all uniform.
    """

    global_crop: tuple[int, int, int] = (96, 96, 96)  # voxels, X Y Z
    local_crop: tuple[int, int, int] = (48, 48, 48)
    steps: int = 125_000
    batch_size: int = 512  # over all devices
    base_lr: float = 2e-3
    lr_rule: str = "sqrt"  # lr = base_lr * sqrt(batch_size / 1024); "constant": lr = base_lr
    warmup_fraction: float = 0.1  # 12,500 of 125,000 steps
    min_lr: float = 1e-6
    weight_decay: tuple[float, float] = (0.04, 0.4)  # cosine from, to
    decay_all: bool = False  # of biases, norms and layer scales too
    clip_norm: float = 3.0  # per sub-network; 0: no clipping
    layer_decay: float = 0.9
    patch_embed_lr: float = 0.2  # extra factor
    freeze_last_layer: float = 0.01  # fraction of the steps in which the prototypes rest
    collapse_steps: int = 500  # 0: a run never stops for a collapse
    collapse_std: float = 0.01  # "feature_std" below this
    collapse_rank: float = 1.05  # "effective_rank" below this; needs 4 volumes in a batch
    collapse_entropy: float = 0.001  # "teacher_entropy" closer than this to 0 or 1
    save_every: int = 500  # steps between checkpoints
    milestone_every: int = 12_500  # steps between checkpoints that stay (the paper's second stage starts at 112,500)
    recompute: bool = False  # blocks of the encoder in the backward pass: less memory, up to a third more time
    seed: int = 0

    def __post_init__(self) -> None:
        _check_positive(self, ("steps", "batch_size", "base_lr", "layer_decay", "save_every"))
        _check_not_negative(self, ("clip_norm", "collapse_steps", "collapse_std", "collapse_rank", "collapse_entropy"))
        _check_not_negative(self, ("milestone_every",))
        _check_fraction(self, ("warmup_fraction", "freeze_last_layer"))
        _check_word(self, "lr_rule", ("sqrt", "constant"))


@dataclass(frozen=True)
class Stage:
    """A stage of a pretraining as a paper did it; schedules are shares of the steps and shrink with them."""

    source: str
    recipe: Mapping[str, Any]  # fields of PretrainRecipe, whatever plan and task say
    min_side: int  # voxels; images with a smaller side are left out
    continues: bool = False  # starts from an earlier run


def _stage_recipe(crops: tuple[int, int], *, batch_size: int, steps: int, base_lr: float) -> dict[str, Any]:
    """Fields of a stage with cubic global and local crops of these sides."""
    sides = {name: (side,) * 3 for name, side in zip(("global_crop", "local_crop"), crops, strict=True)}
    return {**sides, "steps": steps, "batch_size": batch_size, "base_lr": base_lr, "lr_rule": "sqrt"}


STAGES: dict[str, Stage] = {
    "standard": Stage(
        source="3DINO (Methods): 96/48 crops, batch 512, 125,000 steps",
        recipe=_stage_recipe((96, 48), batch_size=512, steps=125_000, base_lr=2e-3),
        min_side=25,
    ),
    "high_res": Stage(
        source="3DINO (Methods): high-resolution adaptation, 112/64 crops, batch 256, 12,500 steps",
        recipe=_stage_recipe((112, 64), batch_size=256, steps=12_500, base_lr=1e-3),
        min_side=49,
        continues=True,
    ),
}


def _check_positive(recipe: object, names: tuple[str, ...]) -> None:
    for name in names:
        if not getattr(recipe, name) > 0:
            raise ValueError(f"{type(recipe).__name__}.{name}={getattr(recipe, name)}: must be above 0")


def _check_fraction(recipe: object, names: tuple[str, ...]) -> None:
    for name in names:
        if not 0 <= getattr(recipe, name) <= 1:
            raise ValueError(f"{type(recipe).__name__}.{name}={getattr(recipe, name)}: must lie between 0 and 1")


def _check_not_negative(recipe: object, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(recipe, name) < 0:
            raise ValueError(f"{type(recipe).__name__}.{name}={getattr(recipe, name)}: must be 0 or more")


def _check_word(recipe: object, name: str, known: tuple[str, ...]) -> None:
    if getattr(recipe, name) not in known:
        raise ValueError(f"{type(recipe).__name__}.{name}={getattr(recipe, name)!r}: known: {', '.join(known)}")


_THREEDINO = FineTuneRecipe(foreground_oversampling=0.5, inference_overlap=0.75)
# Paper: AdamW, cosine from 2e-4, early stopping with a patience that it does not name (50 epochs: five time constants
# of the EMA). Its code: 1e-4, 50 epochs of warm-up, 10,000 epochs, no early stopping; weight decay is the code's 1e-5
# because the paper names none.
_SMIT = FineTuneRecipe(lr=2e-4, weight_decay=1e-5, layer_decay=1.0, epochs=1000, warmup_fraction=0.0, early_stopping=50)


def _smit(source: str, recipe: FineTuneRecipe) -> Preset:
    return Preset(
        source=source,
        finetune=recipe,
        single_label=replace(recipe, loss="bce_dice", sampling="tumour_1to1"),
        decoder="swin_unetr",
        norm="batch",
        frozen=False,  # "fine-tuned"; nothing is frozen in the code either
        batch_size=3,
        crop=(96, 96, 96),
        spacing_mm=(1.5, 1.5, 2.0),
        ct_window_hu=(-175.0, 250.0),  # the pretraining's is -500, 500
        mr_percentiles=(5.0, 95.0),  # MR organs; MR lung tumours are clipped to 0, 400
        epoch_is_pass=True,
    )


RECIPES: dict[str, Preset] = {
    "3dino": Preset(
        source="3DINO (Methods, segmentation fine-tuning)",
        finetune=_THREEDINO,
        single_label=_THREEDINO,
        decoder="unet",
        norm=None,
        frozen=True,
        batch_size=8,
    ),
    "smit_many": _smit("SMIT benchmark, full and many shots (3.3.2, 4.1, 4.2)", _SMIT),
    "smit_few": _smit("SMIT benchmark, few shots (3.3.2, 4.1, 4.2)", replace(_SMIT, epochs=3000)),
}
