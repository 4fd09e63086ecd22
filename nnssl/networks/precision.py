"""In which floating point a segmentor computes, decided by the device and not by an autocast around it."""

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch

PRECISIONS = ("auto", "bf16", "fp32")


def computing(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Context for a forward pass on `device`: bfloat16 autocast, or float32 even inside an outer autocast."""
    if device.type == "meta":
        return nullcontext()  # shapes only
    lowered = precision == "bf16" or (precision == "auto" and has_fast_bf16(device.type))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=lowered)


def check_precision(precision: str) -> None:
    """Raise a ValueError unless the precision is known."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown; known: {', '.join(PRECISIONS)}")


@lru_cache
def has_fast_bf16(device_type: str) -> bool:
    """Whether this machine's devices of that type have bfloat16 instructions (emulation is slower than float32)."""
    if device_type == "cuda":
        return torch.cuda.get_device_capability()[0] >= 8 if torch.version.cuda else torch.cuda.is_bf16_supported()
    if device_type == "cpu":
        checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(check is not None and check() for check in checks)
    return False
