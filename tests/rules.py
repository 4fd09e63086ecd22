"""Deterministic tensors of the golden numbers, and how to compare with them (recipe in the golden README)."""

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED = 0


def normal(key: str, shape: tuple[int, ...], scale: float = 1.0, shift: float = 0.0) -> NDArray[np.float32]:
    """N(KEY, S) * scale + shift."""
    return (standard_normal(key, shape) * scale + shift).astype(np.float32)


def standard_normal(key: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The float64 stream of a key."""
    return _generator(key).standard_normal(shape)


def uniform(key: str, shape: tuple[int, ...], low: float, high: float) -> NDArray[np.float32]:
    """U(KEY, S, low, high)."""
    return (low + (high - low) * _generator(key).random(shape)).astype(np.float32)


def rule_tensor(key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The rule-made value of the parameter or buffer `key`."""
    z = standard_normal(key, shape)
    parts = key.split(".")
    last, owner = parts[-1], parts[-2] if len(parts) > 1 else ""
    if last == "num_batches_tracked":
        value = np.zeros(shape)
    elif last == "running_mean":
        value = z * 0.1
    elif last == "running_var":
        value = 1 + 0.1 * np.abs(z)
    elif key.endswith(".gamma"):
        value = z * 0.1 + 0.5
    elif "norm" in owner and last == "weight":
        value = z * 0.1 + 1
    elif last == "bias":
        value = z * 0.05
    elif last == "relative_position_bias_table":
        value = z * 0.5
    elif last in ("pos_embed", "cls_token", "mask_token"):
        value = z * 0.2
    else:
        value = z / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else z
    return value.astype(np.float32)


def golden_error(stored: Any, name: str, array: NDArray[Any]) -> float:
    """Largest absolute difference between `array` and the stored numbers (full or subsampled)."""
    if name in stored.files:
        assert stored[name].shape == array.shape, (stored[name].shape, array.shape)
        return float(np.abs(array - stored[name]).max())
    meta = stored[f"{name}__meta"]
    assert tuple(meta[1:]) == array.shape, (tuple(meta[1:]), array.shape)
    return float(np.abs(array.reshape(-1)[:: int(meta[0])] - stored[f"{name}__sub"]).max())


def _generator(key: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()) + SEED))
