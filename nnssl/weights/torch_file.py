"""PyTorch files: tensors and plain values come out, everything else is refused, and nothing in the file is run."""

import pickle
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

SAFE_LEGACY = (2, 6)  # older PyTorch runs code from old-style files in spite of weights_only (CVE-2025-32434)
NAMED_GLOBALS = (2, 6)  # older PyTorch cannot be told of one thing that stands for another
NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


def read_torch(path: Path, *, old_style: bool) -> Any:
    """What a PyTorch file holds.

    Args:
        old_style: it is a bare pickle, not a zip archive (PyTorch before 1.6).

    Raises:
        ValueError: it holds other objects, or is damaged; one line with the reason.
    """
    if old_style and _installed_torch() < SAFE_LEGACY:
        raise ValueError(f"an old-style PyTorch file is safe to read from PyTorch 2.6 on, this is {torch.__version__}")
    try:
        # an open file, because newer versions of PyTorch go by the suffix of a path
        with path.open("rb") as file, _only_plain_values(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about the pickle protocol; the error says what is wrong
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global:?|function|class)\s+`?((?!GLOBAL)[\w.]+)`?", str(error))
        what = found.group(1) if found else "objects"
        raise ValueError(
            f"it asks for {what}, which is not a tensor, or is damaged; nothing was run; save only the state dict"
        ) from error
    except Exception as error:  # a damaged file can fail anywhere inside the unpickler
        reason = str(error).partition("\n")[0][:120] or type(error).__name__
        raise ValueError(f"the PyTorch file is truncated or damaged ({reason}); copy it again") from error


def _installed_torch() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])


class _NumberKind:
    """Stands for numpy.dtype, which believes what a file says of its memory: only kinds of numbers, and their order."""

    def __init__(self, name: str, *_: Any) -> None:
        if name not in NUMBERS:
            raise ValueError(f"a numpy value of kind {name!r}")
        self.name, self.order = name, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


class _Settings:
    """Stands for argparse.Namespace, the settings of a training script: not needed here, so not kept."""

    def __setstate__(self, state: Any) -> None:
        pass


def _number(kind: _NumberKind, content: bytes) -> float:
    """Stands for numpy's constructor of scalars."""
    return np.frombuffer(content, np.dtype(kind.order + kind.name)).item()


PLAIN: list[Any] = [
    (_number, "numpy.core.multiarray.scalar"),  # its name before numpy 2
    (_number, "numpy._core.multiarray.scalar"),
    (_NumberKind, "numpy.dtype"),
    (_Settings, "argparse.Namespace"),
]


@contextmanager
def _only_plain_values() -> Iterator[None]:
    """Let numpy's numbers (a best accuracy) and a namespace pass, and nothing that others have declared safe."""
    if _installed_torch() < NAMED_GLOBALS:  # files with such values are refused
        yield
        return
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(PLAIN)
    try:
        yield
    finally:
        since = [one for one in torch.serialization.get_safe_globals() if one not in PLAIN]  # by an import inside
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before + since)
