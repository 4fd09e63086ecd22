"""Encoder files: written as safetensors with a header, read from any known format found by content, never by suffix."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nnssl.encoders.base import Encoder
from nnssl.paths import atomic_write
from nnssl.weights.formats import read_layout
from nnssl.weights.header import EncoderHeader, header_from_text, header_to_text
from nnssl.weights.hub import fetch
from nnssl.weights.hub import sha256 as sha256  # those who read files also record them
from nnssl.weights.layout import Facts
from nnssl.weights.torch_file import read_torch
from nnssl.weights.unwrap import shown, unwrap

METADATA_KEY = "nnssl"
MESSAGE = 400  # characters
ZIP_START = b"PK\x03\x04"
PICKLE_START = b"\x80"
LFS_START = b"version https://git-lfs"


@dataclass(frozen=True)
class Weights:
    """The tensors of a weight file under our parameter names."""

    tensors: dict[str, Tensor]
    header: EncoderHeader | None  # only in files that nnssl wrote
    format_name: str  # "nnssl", "nnssl_train" or a key of nnssl.weights.formats.LAYOUTS
    notes: list[str] = field(default_factory=list)  # what was chosen and left out while reading
    facts: Facts = field(default_factory=Facts)  # what the file says beyond the shapes of its tensors


def save_encoder(path: Path | str, encoder: Encoder, header: EncoderHeader) -> None:
    """Write an encoder and its header as one safetensors file; an earlier file stays whole until it is complete."""
    check_header(encoder, header)
    metadata = {METADATA_KEY: header_to_text(header), "format": "pt"}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    with atomic_write(Path(path)) as temporary:
        mode = temporary.stat().st_mode
        try:
            safetensors.torch.save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:
            raise _as_os_error(error) from error
        temporary.chmod(mode)  # safetensors replaces the file by one that only its owner may read


def check_header(encoder: Encoder, header: EncoderHeader) -> None:
    """Raise a ValueError unless the header is about this encoder."""
    spec = encoder.spec
    said = (header.encoder, tuple(header.native_crop), header.encoder_options)
    if said != (spec.name, tuple(spec.native_crop), spec.options):
        raise ValueError(
            f"saving {spec.name!r} of native crop {spec.native_crop} and options {spec.options}: the header says "
            f"{header.encoder!r} of native crop {header.native_crop} and options {header.encoder_options}"
        )


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
            notes = checkpoint.notes + reading.notes
            weights = Weights(reading.tensors, reading.header, layout, notes, reading.facts)
    except ValueError as error:
        raise ValueError(f"reading weights {given}: {shown(str(error), MESSAGE)}") from error
    except (ArithmeticError, LookupError, AttributeError, RuntimeError, TypeError) as error:  # of another make
        reason = shown(str(error), MESSAGE)
        raise ValueError(f"reading weights {given}: what lies beside its tensors is damaged ({reason})") from error
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
    return read_torch(path, old_style=kind == "pickle"), None


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"the safetensors file is truncated or damaged ({error}); copy it again") from error


def _header_of(file: Any) -> EncoderHeader | None:
    text = (file.metadata() or {}).get(METADATA_KEY)
    return None if text is None else header_from_text(text)


def _as_os_error(error: SafetensorError) -> OSError:
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number.group(1)) if number else 0, str(error))
