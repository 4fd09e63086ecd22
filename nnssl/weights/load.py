"""Weights into an encoder, with a report; nothing is left out silently."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnssl.config import to_dict
from nnssl.encoders import ENCODERS
from nnssl.encoders.base import Encoder
from nnssl.weights.channels import fit_channels
from nnssl.weights.encoder_file import Weights, read_weights
from nnssl.weights.identify import identify
from nnssl.weights.positions import fit_positions
from nnssl.weights.sizes import FAMILIES, family_of
from nnssl.weights.unwrap import Tensors, shown

SHOWN = 4  # names in a message
SWITCHES = ("window_reverse", "merge_order", "taps", "clamp_window", "axis_order", "heads")  # no tensor shows them
MASK_TOKEN = "mask_token"  # starts at zero; published files of other packages may lack it


@dataclass(frozen=True)
class LoadReport:
    """What happened to the encoder's tensors."""

    loaded: int
    total: int  # tensors of the encoder
    missing: tuple[str, ...] = ()  # of the encoder, not in the file: they keep their initial values
    unexpected: tuple[str, ...] = ()  # in the file, not of the encoder
    reshaped: tuple[str, ...] = ()  # fitted to the encoder's native crop or channels, with both sizes
    notes: tuple[str, ...] = field(default=())  # from reading: wrappers, prefixes, heads left out, forced switches

    def summary(self) -> str:
        """One line: counts, then everything that was not loaded as it is in the file."""
        parts = [f"{self.loaded} of {self.total} encoder tensors loaded ({100 * self.loaded / self.total:.4g} %)"]
        parts += [f"{len(self.missing)} missing ({_some(self.missing)})"] if self.missing else []
        parts += [f"{len(self.unexpected)} unexpected ({_some(self.unexpected)})"] if self.unexpected else []
        return "; ".join([*parts, *self.reshaped, *self.notes])


def load_encoder(encoder: Encoder, path: Path | str, *, allow_partial: bool = False) -> LoadReport:
    """Load a weight file of any known format into an encoder; on an error the encoder is unchanged.

    A position table of another native crop is resampled, a first convolution of another number of channels adapted
    (`nnssl.weights.channels`); both are reported.

    Args:
        allow_partial: accept missing and unexpected tensors; wrong shapes are an error all the same.

    Raises:
        ValueError: the weights do not fit; the message says what they hold and what to ask for.
    """
    weights = read_weights(path)
    try:
        return load_weights(encoder, weights, allow_partial=allow_partial)
    except ValueError as error:
        raise ValueError(f"loading {path} into {encoder.spec.name!r}: {error}") from error


def load_weights(encoder: Encoder, weights: Weights, *, allow_partial: bool = False) -> LoadReport:
    """`load_encoder` for weights that are already read."""
    wanted = encoder.state_dict()
    _check_size(encoder, weights)
    _check_switches(encoder, weights)
    tensors, resampled = fit_positions(encoder, weights.tensors, weights.facts.native_crop)
    tensors, adapted = _fit_channels(encoder, tensors)
    notes = list(weights.notes)
    if weights.header is None and MASK_TOKEN in wanted and MASK_TOKEN not in tensors:
        tensors = {**tensors, MASK_TOKEN: torch.zeros_like(wanted[MASK_TOKEN])}
        notes.append(f"{MASK_TOKEN} is not in the file and is zero")
    _check_shapes(wanted, tensors)
    _check_kinds(wanted, tensors)
    _check_finite(tensors)
    report = LoadReport(
        loaded=len(wanted.keys() & tensors.keys()),
        total=len(wanted),
        missing=tuple(sorted(wanted.keys() - tensors.keys())),
        unexpected=tuple(sorted(tensors.keys() - wanted.keys())),
        reshaped=(*resampled, *adapted),
        notes=tuple(notes),
    )
    if (report.missing or report.unexpected) and not allow_partial:
        raise ValueError(f"{report.summary()}; all must fit unless partial loading is allowed")
    encoder.load_state_dict({name: tensors[name] for name in wanted if name in tensors}, strict=False)
    return report


def _check_size(encoder: Encoder, weights: Weights) -> None:
    """Another size or family of encoder is named as such, not as hundreds of wrong shapes."""
    name = family_of(weights.tensors)
    family, asked = FAMILIES[name], encoder.spec.name
    if name != encoder.spec.family:
        raise ValueError(f"the weights hold a {family.title}; asked for {asked}: {_advice(weights)}")
    file, built = (family.measure(tensors).values for tensors in (weights.tensors, encoder.state_dict()))
    wrong = [key for key in built if file[key] != built[key] and key != "input_channels"]
    if wrong:
        found = ", ".join(f"{key} {file[key]}" for key in file if key != "input_channels")
        instead = ", ".join(f"{key} {built[key]}" for key in wrong)
        raise ValueError(
            f"the weights hold a {family.title} ({found}); asked for {asked} ({instead}): {_advice(weights)}"
        )


def _advice(weights: Weights) -> str:
    try:
        found = identify(weights)
    except ValueError:
        return "no encoder of the table has this size"
    options = f" with options {found.options}" if found.options else ""
    return f"use -e {found.encoder}{options}"


def _check_switches(encoder: Encoder, weights: Weights) -> None:
    """Refuse an encoder that orders windows, merges or axes in another way than the weights were trained with."""
    line, said = ENCODERS.get(encoder.spec.name), _said(weights)
    built = to_dict(line) | encoder.spec.options if line else {}
    wrong = [key for key in SWITCHES if key in said and key in built and said[key] != built[key]]
    if wrong:
        trained, asked = (", ".join(f"{key} {values[key]}" for key in wrong) for values in (said, built))
        raise ValueError(
            f"the weights were trained with {trained}, but {encoder.spec.name} was built with {asked}; "
            "build the encoder that the file names, or read the file with these options if they are meant"
        )


def _said(weights: Weights) -> dict[str, Any]:
    """What the file says of its encoder, all fields of the line where it names one."""
    facts = weights.facts
    line = ENCODERS.get(facts.encoder) if facts.encoder else None
    return (to_dict(line) if line else {}) | facts.options


def _fit_channels(encoder: Encoder, tensors: Tensors) -> tuple[Tensors, tuple[str, ...]]:
    """Adapt the first convolution where the file's images have another number of channels than the encoder's."""
    name = FAMILIES[encoder.spec.family].kernel
    stored, wanted = tensors[name].shape[1], encoder.spec.input_channels
    if stored == wanted:
        return tensors, ()
    note = f"{name} adapted from {stored} to {wanted} channels (mean, repeated, same sum)"
    return {**tensors, name: fit_channels(tensors[name], wanted)}, (note,)


def _check_shapes(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    wrong = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    if wrong:
        raise ValueError(f"{len(wrong)} tensors have another shape: {_some(wrong)}")


def _check_kinds(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Complex numbers would lose a part, and whole numbers have a scale of their own."""
    wrong = [
        f"{name} of type {str(tensors[name].dtype).removeprefix('torch.')}"
        for name in wanted
        if name in tensors and wanted[name].is_floating_point() and not tensors[name].is_floating_point()
    ]
    if wrong:
        raise ValueError(f"{len(wrong)} tensors hold no floating-point numbers: {_some(wrong)}")


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"{len(broken)} tensors hold NaN or infinity ({_some(broken)}); that training diverged")


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:SHOWN])) + (f", ... {len(names) - SHOWN} more" if len(names) > SHOWN else "")
