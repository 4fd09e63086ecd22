"""FrozenEncoderTrainer: nnU-Net's training procedure for a segmentor on a frozen, pretrained encoder."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from nnssl.config import from_dict
from nnssl.data.volumes import stored_cases
from nnssl.inference.checkpoint import load_network, read_checkpoint
from nnssl.recipe import FineTuneRecipe
from nnssl.trainers.augmentation import AxisFirst, coarse_axis, for_stored_range, front, mirror_axes
from nnssl.trainers.finetune_checkpoint import write_checkpoint
from nnssl.trainers.finetune_schedule import IterationSchedule
from nnssl.trainers.splits import cases_of_fold, labelled_subset, splits_for

STOCK_TRAINER = "nnUNetTrainer"  # the network is named in the plans, so nnU-Net's own trainer class can predict
PRIVATE_KEYS = ("dataset", "patients")  # paths and case names of dataset.json
TILT = 30 / 180 * np.pi  # nnU-Net: rotation of isotropic crops; crops of thick slices turn freely within the slice


class FrozenEncoderTrainer(nnUNetTrainer):
    """nnU-Net's trainer with AdamW, warm-up and cosine; every number comes from `plans["nnssl"]["finetune"]`.

    `plans["nnssl"]["run"]` holds what nnssl_train was asked for: {"mode", "num_labelled", "seed", ...}. Mode
    "pretrained" needs `set_encoder` before training starts.
    """

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int | str,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  (nnU-Net inspects exactly this signature)
    ) -> None:
        if "run" not in plans.get("nnssl", {}):
            raise ValueError("FrozenEncoderTrainer needs plans with a run section; start it with nnssl_train")
        dataset_json = {key: value for key, value in dataset_json.items() if key not in PRIVATE_KEYS}
        super().__init__(plans, configuration, fold, dataset_json, device)
        recipe = from_dict(FineTuneRecipe, plans["nnssl"]["finetune"])
        self.recipe = recipe
        self.run = plans["nnssl"]["run"]
        self.initial_lr = recipe.lr
        self.weight_decay = recipe.weight_decay
        self.num_epochs = recipe.epochs
        self.num_iterations_per_epoch = recipe.iterations_per_epoch
        self.num_val_iterations_per_epoch = recipe.val_iterations
        self.oversample_foreground_percent = recipe.foreground_oversampling
        self.save_every = recipe.save_every
        self.enable_deep_supervision = False
        self.validate_with_mirroring = True
        self.has_encoder = self.run["mode"] != "pretrained"

    # --- network and optimiser

    def set_encoder(self, weights: Mapping[str, Tensor]) -> None:
        """Put pretrained weights into the encoder in place; no path is kept."""
        if not self.was_initialized:
            self.initialize()
        self.bare_network().get_submodule("encoder").load_state_dict(weights)
        self.has_encoder = True

    def bare_network(self) -> nn.Module:
        """The network without the wrappers of DDP and torch.compile."""
        network = self.network.module if self.is_ddp else self.network
        return getattr(network, "_orig_mod", network)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, IterationSchedule]:
        """AdamW over everything that is not frozen."""
        trainable = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=self.initial_lr, weight_decay=self.weight_decay)
        schedule = IterationSchedule(
            optimizer,
            self.initial_lr,
            epochs=self.num_epochs,
            per_epoch=self.num_iterations_per_epoch,
            warmup_fraction=self.recipe.warmup_fraction,
        )
        return optimizer, schedule

    def train_step(self, batch: dict) -> dict:
        """nnU-Net's step; the learning rate moves on with every iteration."""
        outputs = super().train_step(batch)
        self.lr_scheduler.next_iteration()
        return outputs

    def on_train_start(self) -> None:
        """Refuse to train on an encoder that was never loaded."""
        if not self.has_encoder:
            raise RuntimeError("mode is 'pretrained' but set_encoder was not called; start with nnssl_train")
        super().on_train_start()

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """The segmentor has one output."""

    def plot_network_architecture(self) -> None:
        """nnU-Net's plot needs an abandoned package."""

    def _do_i_compile(self) -> bool:
        """Off unless nnUNet_compile says so: the gain on a frozen ViT does not pay for the waiting."""
        return "nnUNet_compile" in os.environ and super()._do_i_compile()

    # --- data

    def do_split(self) -> tuple[list[str], list[str]]:
        """(training, validation) cases of the fold: patients stay together, few labels are a nested subset."""
        folder = Path(self.preprocessed_dataset_folder_base)
        identifiers = stored_cases(Path(self.preprocessed_dataset_folder))
        train, validation = cases_of_fold(splits_for(folder, identifiers), self.fold)
        number = self.run.get("num_labelled")
        if number is not None:
            train = labelled_subset(train, number, self.run.get("seed", 0))
        self.print_to_log_file(f"fold {self.fold}: {len(train)} training and {len(validation)} validation cases")
        return train, validation

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(  # noqa: N802
        self,
    ) -> tuple[tuple[float, float], bool, np.ndarray, tuple[int, ...]]:
        """nnU-Net's choices with the coarse axis from the plan's spacing and mirroring from the labels' names."""
        crop = np.array(self.configuration_manager.patch_size)
        axis = coarse_axis(self.configuration_manager.spacing)
        angle = TILT if axis is None else np.pi
        loaded = np.array(get_patch_size(crop, *[(-angle, angle)] * 3, (0.85, 1.25)))
        if axis is not None:
            loaded[axis] = crop[axis]
        axes = mirror_axes(self.dataset_json["labels"])
        self.inference_allowed_mirroring_axes = axes
        self.print_to_log_file(f"crop loaded before rotation: {loaded.tolist()}, mirrored axes: {axes}")
        return (-angle, angle), axis is not None, loaded, axes

    def get_training_transforms(  # type: ignore[override]
        self,
        patch_size: Any,
        rotation_for_DA: Any,
        deep_supervision_scales: Any,
        mirror_axes: tuple[int, ...],
        do_dummy_2d_data_aug: bool,
        **options: Any,
    ) -> BasicTransform:
        """nnU-Net's transforms for stored [0, 1] volumes; thick slices are turned within the slice only."""
        axis = coarse_axis(self.configuration_manager.spacing) if do_dummy_2d_data_aug else None
        order = (0, 1, 2) if axis is None else front(axis)
        stock = nnUNetTrainer.get_training_transforms(
            [patch_size[index] for index in order],
            rotation_for_DA,
            deep_supervision_scales,
            tuple(order.index(mirrored) for mirrored in mirror_axes),
            do_dummy_2d_data_aug,
            **options,
        )
        transforms = for_stored_range(stock)
        return transforms if axis is None else AxisFirst(axis, transforms)

    # --- checkpoints and validation

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint, atomically; `trainer_name` lets stock nnUNetv2_predict load it."""
        if self.local_rank != 0 or self.disable_checkpointing:
            return
        checkpoint = {
            "network_weights": self.bare_network().state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": self.grad_scaler.state_dict() if self.grad_scaler is not None else None,
            "logging": self.logger.get_checkpoint(),
            "_best_ema": self._best_ema,
            "current_epoch": self.current_epoch + 1,
            "init_args": {key: value for key, value in self.my_init_kwargs.items() if key != "device"},
            "trainer_name": STOCK_TRAINER,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
            "nnssl_trainer_name": type(self).__name__,
            "nnssl_run": self.run,
        }
        write_checkpoint(Path(filename), checkpoint)

    def load_checkpoint(self, filename: str, /) -> None:
        """Continue from a checkpoint; the encoder comes with it, its own file is not needed.

        Raises:
            ValueError: the checkpoint is damaged, or labels or plans are not those that it was trained with.
        """
        if not self.was_initialized:
            self.initialize()
        checkpoint = read_checkpoint(Path(filename), self.device)
        load_network(
            self.bare_network(),
            checkpoint["network_weights"],
            where=f"continuing from {filename}",
            advice="restore the plans and labels that it was trained with, or train a new -run",
        )
        self.has_encoder = True
        self.optimizer.load_state_dict(checkpoint["optimizer_state"])
        if self.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
            self.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
        self.logger.load_checkpoint(checkpoint["logging"])
        self.current_epoch = checkpoint["current_epoch"]
        self._best_ema = checkpoint["_best_ema"]
        self.inference_allowed_mirroring_axes = checkpoint["inference_allowed_mirroring_axes"]

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's validation of the fold; `validate_with_mirroring = False` makes it 8 times faster."""
        axes = self.inference_allowed_mirroring_axes
        if not self.validate_with_mirroring:
            self.inference_allowed_mirroring_axes = None  # type: ignore[assignment]  # nnU-Net's word for no mirroring
        try:
            super().perform_actual_validation(save_probabilities)
        finally:
            self.inference_allowed_mirroring_axes = axes
