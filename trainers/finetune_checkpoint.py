"""Writing a fine-tuned checkpoint: only tensors and plain values, whole or not at all."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnssl.paths import atomic_write
from nnssl.trainers.checkpoints import write_state


def write_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Save with numpy values turned into plain ones, so that it loads without unpickling objects.

    Raises:
        OSError: the disk is full or not writable; the earlier file is unchanged.
    """
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        write_state(_plain(checkpoint), stream)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return type(value)((key, _plain(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    return value
