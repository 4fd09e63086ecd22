"""FrozenEncoderTrainer: nnU-Net's training procedure for a segmentor on a pretrained encoder, frozen or tuned."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnssl.config import from_dict
from nnssl.inference.checkpoint import load_network, read_checkpoint
from nnssl.losses.segmentation import bce_dice
from nnssl.networks.segmentor import EncoderSegmentor, load_encoder_weights
from nnssl.networks.tuning import trainable_groups
from nnssl.recipe import FineTuneRecipe
from nnssl.trainers.finetune_checkpoint import write_checkpoint
from nnssl.trainers.finetune_data import FineTuneData
from nnssl.trainers.finetune_schedule import IterationSchedule
from nnssl.trainers.finetune_stop import EarlyStop, frozen_sha256, reason_to_stop

STOCK_TRAINER = "nnUNetTrainer"  # the network is named in the plans, so nnU-Net's own trainer class can predict
PRIVATE_KEYS = ("dataset", "patients")  # paths and case names of dataset.json


class FrozenEncoderTrainer(FineTuneData):
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
        self.probabilistic_oversampling = self.rounds_to_none(recipe.foreground_oversampling)
        self.save_every = recipe.save_every
        self.enable_deep_supervision = False
        self.validate_with_mirroring = True
        self.has_encoder = self.run["mode"] != "pretrained"
        self.frozen_hash: str | None = None  # of what is not trained, from the start of the training

    def rounds_to_none(self, share: float) -> bool:
        """Whether nnU-Net's "last share of a batch" is no crop at all; then every crop is drawn by chance."""
        batch = self.configuration_manager.batch_size
        return round(batch * (1 - share)) == batch

    # --- network and optimiser

    def set_encoder(self, weights: Mapping[str, Tensor]) -> None:
        """Put pretrained weights into the encoder in place; no path is kept."""
        if not self.was_initialized:
            self.initialize()
        load_encoder_weights(self.bare_network(), weights)
        self.has_encoder = True

    def bare_network(self) -> EncoderSegmentor:
        """The network without the wrappers of DDP and torch.compile."""
        network = self.network.module if isinstance(self.network, nn.parallel.DistributedDataParallel) else self.network
        return getattr(network, "_orig_mod", network)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, IterationSchedule]:
        """AdamW over everything that is not frozen; the layers of a tuned encoder learn the slower the lower."""
        decay = 1.0 if self.run["mode"] == "scratch" else self.recipe.layer_decay
        groups = trainable_groups(self.bare_network(), self.initial_lr, decay)
        optimizer = torch.optim.AdamW(groups, lr=self.initial_lr, weight_decay=self.weight_decay)
        schedule = IterationSchedule(
            optimizer,
            self.initial_lr,
            epochs=self.num_epochs,
            per_epoch=self.num_iterations_per_epoch,
            warmup_fraction=self.recipe.warmup_fraction,
        )
        return optimizer, schedule

    def _build_loss(self) -> Any:
        """nnU-Net's cross entropy + Dice (regions: binary), or the recipe's binary cross entropy + Dice."""
        if self.recipe.loss == "ce_dice":
            return super()._build_loss()
        return partial(bce_dice, ignore_label=self.label_manager.ignore_label)

    def train_step(self, batch: dict) -> dict:
        """nnU-Net's step; the learning rate moves on with every iteration."""
        outputs = super().train_step(batch)
        self.lr_scheduler.next_iteration()
        return outputs

    def run_training(self) -> None:
        """nnU-Net's loop; it ends early when the recipe's patience is over."""
        if self.current_epoch and self._reason_to_stop():  # stopped before, or killed before the last checkpoint
            return self.on_train_end()
        try:
            super().run_training()
        except EarlyStop as reason:
            self.print_to_log_file(str(reason))
            self.on_train_end()

    def on_train_start(self) -> None:
        """Refuse to train on an encoder that was never loaded; remember what must not change."""
        if not self.has_encoder:
            raise RuntimeError("mode is 'pretrained' but set_encoder was not called; start with nnssl_train")
        super().on_train_start()
        self.frozen_hash = self.frozen_hash or frozen_sha256(self.bare_network().encoder)[0]

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """nnU-Net's pseudo Dice; validation crops without foreground say nothing, the moving average stays."""
        super().on_validation_epoch_end(val_outputs)
        history = self.logger.get_value("ema_fg_dice", step=None)
        if np.isnan(history[-1]):
            history[-1] = history[-2] if len(history) > 1 else 0.0

    def on_epoch_end(self) -> None:
        """nnU-Net's log and checkpoints, then the question whether to go on."""
        super().on_epoch_end()
        reason = self._reason_to_stop()
        if reason and self.current_epoch < self.num_epochs:
            raise EarlyStop(reason)

    def on_train_end(self) -> None:
        """Check that nothing frozen has changed, then nnU-Net's final checkpoint.

        Raises:
            RuntimeError: a frozen tensor changed; no final checkpoint is written.
        """
        found, tensors = frozen_sha256(self.bare_network().encoder)
        if self.frozen_hash is not None and found != self.frozen_hash:
            raise RuntimeError(
                f"the frozen part of the encoder changed in training: sha256 {found}, was {self.frozen_hash}"
            )
        everything = len(self.bare_network().encoder.state_dict())
        if tensors and self.frozen_hash is not None:
            what = "encoder" if tensors == everything else "frozen part of the encoder"
            self.print_to_log_file(f"{what} unchanged: sha256 {found} ({tensors} of {everything} tensors)")
        super().on_train_end()

    def _reason_to_stop(self) -> str | None:
        return reason_to_stop(self.logger.get_value("ema_fg_dice", step=None), self.recipe.early_stopping)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """The segmentor has one output."""

    def plot_network_architecture(self) -> None:
        """nnU-Net's plot needs an abandoned package."""

    def _do_i_compile(self) -> bool:
        """Off unless nnUNet_compile says so: the gain on a frozen ViT does not pay for the waiting."""
        return "nnUNet_compile" in os.environ and super()._do_i_compile()

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
            "nnssl_frozen_sha256": self.frozen_hash,
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
        self.frozen_hash = checkpoint.get("nnssl_frozen_sha256")
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
