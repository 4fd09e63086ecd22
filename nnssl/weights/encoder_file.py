"""Encoder files: written as safetensors with a header, read from any known format found by content, never by suffix."""

import argparse
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nnssl.encoders.base import Encoder
from nnssl.paths import atomic_write
from nnssl.weights.formats import read_layout
from nnssl.weights.header import EncoderHeader, header_from_text, header_to_text
from nnssl.weights.hub import fetch
from nnssl.weights.hub import sha256 as sha256  # those who read files also record them
from nnssl.weights.layout import Facts
from nnssl.weights.unwrap import unwrap

METADATA_KEY = "nnssl"
ZIP_START = b"PK\x03\x04"
PICKLE_START = b"\x80"
LFS_START = b"version https://git-lfs"
SAFE_LEGACY_TORCH = (2, 6)  # older ones run code from old-style files in spite of weights_only (CVE-2025-32434)


@dataclass(frozen=True)
class Weights:
    """The tensors of a weight file under our parameter names."""

    tensors: dict[str, Tensor]
    header: EncoderHeader | None  # only in files of nnssl
    format_name: str  # "nnssl", "nnssl_train" or a key of nnssl.weights.formats.LAYOUTS
    notes: list[str] = field(default_factory=list)  # what was chosen and left out while reading
    facts: Facts = field(default_factory=Facts)  # what the file says beyond the shapes of its tensors


def save_encoder(path: Path | str, encoder: Encoder, header: EncoderHeader) -> None:
    """Write an encoder and its header as one safetensors file; an earlier file stays whole until it is complete."""
    spec = encoder.spec
    said = (header.encoder, tuple(header.native_crop), header.encoder_options)
    if said != (spec.name, tuple(spec.native_crop), spec.options):
        raise ValueError(
            f"saving {spec.name!r} of native crop {spec.native_crop} and options {spec.options}: the header says "
            f"{header.encoder!r} of native crop {header.native_crop} and options {header.encoder_options}"
        )
    metadata = {METADATA_KEY: header_to_text(header), "format": "pt"}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    with atomic_write(Path(path)) as temporary:
        mode = temporary.stat().st_mode
        try:
            safetensors.torch.save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:
            raise _as_os_error(error) from error
        temporary.chmod(mode)  # safetensors replaces the file by one that only its owner may read


def read_weights(path: Path | str, options: Mapping[str, Any] | None = None) -> Weights:
    """Read a weight file of any known format; nothing in it is executed.

    Args:
        path: a file, a URL, or hf://ORG/REPO/FILE@REVISION; see `nnssl.weights.hub.fetch`.
        options: fields of the encoder's line in ENCODERS that replace what the format forces, where the user knows
            better: {"merge_order": "monai15"} for a SwinUNETR that was trained with MONAI 1.5 or later.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not a weight file, is damaged, or holds no known layout; one line with the reason.
    """
    given, path = path, fetch(path)
    try:
        content, header = _read_content(path)
        if header is not None:
            facts = Facts(header.encoder, header.native_crop, header.encoder_options, header.intensity)
            weights = Weights(content, header, "nnssl", facts=facts)
        else:
            checkpoint = unwrap(content)
            reading, layout = read_layout(checkpoint)
            weights = Weights(reading.tensors, None, layout, checkpoint.notes + reading.notes, reading.facts)
    except ValueError as error:
        raise ValueError(f"reading weights {given}: {error}") from error
    except (AttributeError, IndexError, KeyError, TypeError) as error:  # plans and settings of another make
        raise ValueError(f"reading weights {given}: what lies beside its tensors is damaged ({error})") from error
    return _with_options(weights, options) if options else weights


def _with_options(weights: Weights, options: Mapping[str, Any]) -> Weights:
    facts = replace(weights.facts, options=weights.facts.options | dict(options))
    note = "as asked: " + ", ".join(f"{key} {value}" for key, value in options.items())
    return replace(weights, facts=facts, notes=[*weights.notes, note])


def read_header(path: Path | str) -> EncoderHeader | None:
    """The header alone, without reading the tensors; None for files of other packages."""
    path = Path(path)
    try:
        if _kind(path) != "safetensors":
            return None
        with _open_safetensors(path) as file:
            return _header_of(file)
    except ValueError as error:
        raise ValueError(f"reading weights {path}: {error}") from error


def _kind(path: Path) -> str:
    """ "safetensors", "zip" or "pickle", from the first bytes; anything else is an error that says what it is."""
    if path.is_dir():
        raise ValueError("it is a folder; give the weight file inside it (encoder.safetensors)")
    if not path.is_file():
        raise FileNotFoundError(f"reading weights {path}: no such file; check the path or pretrain first")
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise ValueError("the file is empty; copy or download it again")
    if start[5:9] == b"\0\0\0{":  # eight bytes of header length, then JSON
        return "safetensors"
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise ValueError("it is a web page, not weights; a download that needs a login gives such a page")
    if start.startswith(LFS_START):
        raise ValueError("it is a Git LFS pointer, not weights; fetch the file itself (git lfs pull)")
    if start.startswith(ZIP_START):
        return "zip"
    if start.startswith(PICKLE_START):
        return "pickle"
    raise ValueError(f"it is neither safetensors nor a PyTorch file (it starts with {start[:8]!r})")


def _read_content(path: Path) -> tuple[Any, EncoderHeader | None]:
    kind = _kind(path)
    if kind == "safetensors":
        with _open_safetensors(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, _header_of(file)  # noqa: SIM118
    if kind == "pickle" and _installed_torch() < SAFE_LEGACY_TORCH:
        raise ValueError(f"an old-style PyTorch file is safe to read from PyTorch 2.6 on, this is {torch.__version__}")
    return _read_torch(path), None


def _installed_torch() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"the safetensors file is truncated or damaged ({error}); copy it again") from error


def _header_of(file: Any) -> EncoderHeader | None:
    text = (file.metadata() or {}).get(METADATA_KEY)
    return None if text is None else header_from_text(text)


def _read_torch(path: Path) -> Any:
    """Tensors and plain containers of a PyTorch file; other objects are refused, not built."""
    try:
        # an open file, because newer versions of PyTorch go by the suffix of a path
        with path.open("rb") as file, _plain_values(), warnings.catch_warnings():
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


@contextmanager
def _plain_values() -> Iterator[None]:
    """Let numpy scalars (a best accuracy) and argparse's namespace pass: they hold values and run nothing."""
    if _installed_torch() < (2, 6):  # cannot be told by name; such files are refused
        yield
        return
    scalar: Any = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")]
    older = (scalar, "numpy.core.multiarray.scalar")  # its name before numpy 2
    with torch.serialization.safe_globals([scalar, older, np.dtype, *kinds, argparse.Namespace]):
        yield


def _as_os_error(error: SafetensorError) -> OSError:
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number.group(1)) if number else 0, str(error))
