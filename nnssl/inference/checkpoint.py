"""Reading a fine-tuned checkpoint without running any Python object that it may hold."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

KEYS = ("network_weights", "optimizer_state", "logging", "current_epoch", "init_args", "trainer_name")


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Load a checkpoint of nnssl_train: nnU-Net's keys, tensors and plain values.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, holds other Python objects, or is no training checkpoint.
    """
    if not path.is_file():
        raise FileNotFoundError(f"loading checkpoint {path}: no such file; train this fold first, or give another -chk")
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0][:100]
        raise ValueError(
            f"loading checkpoint {path}: damaged, or it holds Python objects other than tensors ({reason}); "
            "give a checkpoint written by nnssl_train"
        ) from error
    missing = [key for key in KEYS if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise ValueError(f"loading checkpoint {path}: {', '.join(missing)} missing; give a checkpoint of nnssl_train")
    return checkpoint


def load_network(network: nn.Module, weights: Mapping[str, Tensor], *, where: str, advice: str) -> None:
    """Put the weights of a checkpoint into a network.

    Args:
        where: begins the message: what was being loaded.
        advice: ends the message: what to do.

    Raises:
        ValueError: the weights are of another network, as when labels or plans were changed after training.
    """
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).partition("\n")[2].strip().partition("\n")[0] or str(error)
        raise ValueError(f"{where}: the checkpoint does not fit the plans and labels ({reason}); {advice}") from error
