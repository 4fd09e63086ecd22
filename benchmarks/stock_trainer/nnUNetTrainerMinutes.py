"""Stock nnU-Net training that ends after a given number of minutes (environment NNSSL_STOCK_MINUTES), else unchanged.

The polynomial learning rate follows the elapsed share of the time instead of the share of the epochs.
"""

import os
import time
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerMinutes(nnUNetTrainer):  # noqa: N801 - nnU-Net's naming of trainers
    """nnUNetTrainer whose budget is wall-clock time."""

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.budget_s = 60 * float(os.environ["NNSSL_STOCK_MINUTES"])
        self.num_iterations_per_epoch = 10
        self.num_val_iterations_per_epoch = 1
        self.save_every = 10**9
        self.started = time.monotonic()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        share = min((time.monotonic() - self.started) / self.budget_s, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.initial_lr * max(1 - share, 1e-6) ** 0.9
        return super().train_step(batch)

    def run_training(self) -> None:
        self.on_train_start()
        self.started = time.monotonic()
        while time.monotonic() - self.started < self.budget_s:
            self.on_epoch_start()
            self.on_train_epoch_start()
            steps = range(self.num_iterations_per_epoch)
            self.on_train_epoch_end([self.train_step(next(self.dataloader_train)) for _ in steps])
            with torch.no_grad():
                self.on_validation_epoch_start()
                steps = range(self.num_val_iterations_per_epoch)
                self.on_validation_epoch_end([self.validation_step(next(self.dataloader_val)) for _ in steps])
            self.on_epoch_end()
        print(f"training took {time.monotonic() - self.started:.0f} s, {self.current_epoch} epochs of 10 iterations")
        self.on_train_end()
