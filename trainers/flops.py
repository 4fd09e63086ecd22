"""Floating point operations of a training step, counted once, and the share of the device's peak that they reach."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

# bfloat16 without sparsity, from NVIDIA's data sheets; the first name that stands as words in the device's name
PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "RTX A6000": 155e12,
    "A40": 150e12,
    "L4": 121e12,
}
_CPU_SIDE, _GPU_SIDE = 1024, 4096  # of the matrices that are multiplied where the peak is not known
_TRIALS = 5


class FlopCounter(TorchDispatchMode):
    """Adds up multiplications and additions of matrix products, convolutions and attention, forward and backward.

    Norms, activations and optimisers are left out, as is usual (Chowdhery et al. 2022, appendix B). A block that is
    recomputed in the backward pass counts twice.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operator and count it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        return out


class FlopMeter:
    """Counts the first step of this process and rates all steps by it.

    Args:
        device: its peak is the data sheet's where it is listed and computes in bfloat16; else the fastest of some
            large matrix products in the type of the forward passes.
        autocast: type of the forward passes; None: float32.
    """

    def __init__(self, device: torch.device, autocast: torch.dtype | None) -> None:
        self.device, self.dtype = device, autocast or torch.float32
        self.step_flops = 0
        self.peak = 0.0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Around each step; only the first one is counted, which changes no weight.

        Of the logged numbers the effective rank may differ in its last digit: PyTorch takes singular values by another
        routine while operators are watched.
        """
        if self.peak:
            yield
            return
        with FlopCounter() as counter:
            yield
        self.step_flops = counter.flops
        self.peak = peak_flops(self.device, self.dtype)

    def rates(self, seconds: float) -> dict[str, float]:
        """Of a step of this process: "tflops" (10^12 per second) and "mfu", the share of the device's peak."""
        per_second = self.step_flops / seconds
        return {"tflops": per_second / 1e12, "mfu": per_second / self.peak}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of large matrix products: from the table, else measured (about 0.1 s)."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        listed = listed_peak(torch.cuda.get_device_name(device))
        if listed is not None:
            return listed
    return measured_peak(device, dtype)


def listed_peak(name: str) -> float | None:
    """The data sheet's bfloat16 peak of a GPU by the name that it reports."""
    return next((peak for known, peak in PEAKS.items() if re.search(rf"\b{known}\b", name)), None)


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The fastest of some square matrix products."""
    side = _CPU_SIDE if device.type == "cpu" else _GPU_SIDE
    matrix = torch.full((side, side), 0.5, device=device, dtype=dtype)
    fastest = float("inf")
    for _ in range(_TRIALS + 1):  # the first one warms up
        begun = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for the device
        fastest = min(fastest, time.perf_counter() - begun)
    return 2 * side**3 / fastest
