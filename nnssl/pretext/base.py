"""What every pretext task is."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnssl.encoders.base import Encoder


class PretextTask(nn.Module, ABC):
    """A self-supervised objective around one encoder.

    The training loop calls, in this order: `prepare` (data workers), `augment`, `begin_step`, `forward`,
    the optimiser, `after_step`.
    """

    Config: ClassVar[type]  # frozen dataclass; defaults are the paper's
    config: Any

    @abstractmethod
    def prepare(self, volume: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Geometry only, in a data worker: one volume (1, X, Y, Z) in [0, 1] -> named views without batch axis."""

    @abstractmethod
    def augment(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Intensity and masking on the training device for the whole batch; ends in the encoder's range."""

    @abstractmethod
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"loss": scalar to minimise, further scalars to log}; changes no state."""

    def begin_step(self, step: int, total: int) -> None:
        """Set what depends on the position in training (teacher temperature) before step `step` of `total`."""

    def after_step(self, step: int, total: int) -> None:
        """Move teachers and centres after the optimiser's step."""

    @abstractmethod
    def trained_parts(self) -> dict[str, nn.Module]:
        """Sub-networks that the optimiser trains, by name; gradients are clipped per part. "encoder" is one of them."""

    @abstractmethod
    def result(self) -> Encoder:
        """The encoder to keep (a teacher where the method has one)."""
