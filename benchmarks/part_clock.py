"""How long each part of a network takes in a forward and in a backward pass."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Parts = tuple[tuple[str, str], ...]  # pattern of module names, label
REST = "rest"
FORWARD, BACKWARD = 0, 1


class PartClock:
    """Attributes seconds to labels.

    Forward: to the watched module that runs. Backward, which goes through the network in reverse: to the module whose
    output's gradient was ready last.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {}  # label: forward, backward
        self._current, self._since = (REST, FORWARD), now(device)

    def enter(self, label: str, way: int) -> None:
        """From now on time is this part's, on the way forward or backward."""
        moment = now(self.device)
        before, way_before = self._current
        self.seconds.setdefault(before, [0.0, 0.0])[way_before] += moment - self._since
        self._current, self._since = (label, way), moment

    @contextmanager
    def watching(self, network: nn.Module, parts: Parts) -> Iterator[None]:
        """Watch the modules that the patterns find; inside a found module nothing else is looked for."""
        handles, found = [], []
        for name, module in network.named_modules():
            label = next((label for pattern, label in parts if re.search(pattern, name)), None)
            if label and not name.startswith(tuple(f"{outer}." for outer in found)):
                found.append(name)
                handles += [
                    module.register_forward_pre_hook(self._into(label)),
                    module.register_forward_hook(self._out_of(label)),
                ]
        yield
        for handle in handles:
            handle.remove()

    def _into(self, label: str) -> Callable[..., None]:
        return lambda *_: self.enter(label, self._current[1])

    def _out_of(self, label: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: Tensor | list[Tensor]) -> None:
            way = self._current[1]  # BACKWARD: this forward pass is a recomputation, its gradients follow
            self.enter(REST if way == FORWARD else label, way)
            for tensor in [output] if isinstance(output, Tensor) else output:
                if tensor.requires_grad:
                    tensor.register_hook(lambda _: self.enter(label, BACKWARD))

        return hook


def now(device: torch.device) -> float:
    """Seconds, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
