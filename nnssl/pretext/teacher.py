"""A teacher: a copy of trained parts that follows them as an exponential moving average and never learns itself."""

from collections.abc import Mapping

import torch
from torch import nn


class Teacher(nn.Module):
    """Parts by name (`teacher.parts["encoder"]`), without gradients and always in eval mode."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in eval mode whatever is asked: no stochastic depth in targets."""
        return super().train(False)

    @torch.no_grad()
    def copy(self, students: Mapping[str, nn.Module]) -> None:
        """Start as an exact copy of the students; names and shapes must agree."""
        for name, part in self.parts.items():
            part.load_state_dict(students[name].state_dict())

    @torch.no_grad()
    def follow(self, students: Mapping[str, nn.Module], momentum: float) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student; buffers are copied."""
        own: list[torch.Tensor] = []
        others: list[torch.Tensor] = []
        for name, part in self.parts.items():
            own += list(part.parameters())
            others += list(students[name].parameters())
            for mine, other in zip(part.buffers(), students[name].buffers(), strict=True):
                mine.copy_(other)
        torch._foreach_lerp_(own, others, 1 - momentum)
