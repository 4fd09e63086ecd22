"""Weights into an encoder, with a report; nothing is left out silently."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from nnssl.encoders.base import Encoder
from nnssl.encoders.vit import VisionTransformer
from nnssl.layers.position import resample_positions
from nnssl.weights.encoder_file import Weights, read_weights
from nnssl.weights.identify import find_vit

SHOWN = 4  # names in a message
POSITIONS = "pos_embed"


@dataclass(frozen=True)
class LoadReport:
    """What happened to the encoder's tensors."""

    loaded: int
    total: int  # tensors of the encoder
    missing: tuple[str, ...] = ()  # of the encoder, not in the file: they keep their initial values
    unexpected: tuple[str, ...] = ()  # in the file, not of the encoder
    reshaped: tuple[str, ...] = ()  # resampled to the encoder's native crop, with both grids
    notes: tuple[str, ...] = field(default=())  # from reading: wrappers and heads left out

    def summary(self) -> str:
        """One line: counts, then everything that was not loaded as it is in the file."""
        parts = [f"{self.loaded} of {self.total} encoder tensors loaded ({100 * self.loaded / self.total:.4g} %)"]
        parts += [f"{len(self.missing)} missing ({_some(self.missing)})"] if self.missing else []
        parts += [f"{len(self.unexpected)} unexpected ({_some(self.unexpected)})"] if self.unexpected else []
        return "; ".join([*parts, *self.reshaped, *self.notes])


def load_encoder(encoder: Encoder, path: Path | str, *, allow_partial: bool = False) -> LoadReport:
    """Load a weight file of any known format into an encoder; on an error the encoder is unchanged.

    A position table of another native crop is resampled (3DINO's scale-factor rule) and reported.

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
    tensors = weights.tensors
    reshaped: tuple[str, ...] = ()
    if isinstance(encoder, VisionTransformer):
        _check_size(encoder, tensors)
        tensors, reshaped = _fit_positions(encoder, weights)
    _check_shapes(wanted, tensors)
    _check_finite(tensors)
    report = LoadReport(
        loaded=len(wanted.keys() & tensors.keys()),
        total=len(wanted),
        missing=tuple(sorted(wanted.keys() - tensors.keys())),
        unexpected=tuple(sorted(tensors.keys() - wanted.keys())),
        reshaped=reshaped,
        notes=tuple(weights.notes),
    )
    if (report.missing or report.unexpected) and not allow_partial:
        raise ValueError(f"{report.summary()}; all must fit unless partial loading is allowed")
    encoder.load_state_dict({name: tensors[name] for name in wanted if name in tensors}, strict=False)
    return report


def _check_size(encoder: VisionTransformer, tensors: dict[str, Tensor]) -> None:
    """Another size of transformer is named as such, not as hundreds of wrong shapes."""
    found = find_vit(tensors)
    if (found.dim, found.depth, found.patch) != (encoder.dim, encoder.depth, encoder.patch):
        advice = f"use -e {found.name}" if found.name else "no encoder of the table has this size"
        raise ValueError(f"the weights hold a {found}; asked for {encoder.spec.name}: {advice}")


def _fit_positions(encoder: VisionTransformer, weights: Weights) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Resample the position table where the file's native grid is another one than the encoder's."""
    table = weights.tensors[POSITIONS]
    stored = _stored_grid(encoder, weights)
    if stored == encoder.native_grid:
        return weights.tensors, ()
    patches = resample_positions(table[:, 1:].float(), stored, encoder.native_grid, rule="scale_factor")
    fitted = torch.cat([table[:, :1].float(), patches], dim=1).to(table.dtype)
    note = f"{POSITIONS} resampled from {_times(stored)} to {_times(encoder.native_grid)} tokens"
    return {**weights.tensors, POSITIONS: fitted}, (note,)


def _stored_grid(encoder: VisionTransformer, weights: Weights) -> tuple[int, ...]:
    found = find_vit(weights.tensors)
    if weights.header is not None:
        grid = tuple(side // found.patch for side in weights.header.native_crop)
        if math.prod(grid) == found.cells:
            return grid
        raise ValueError(f"the header's native crop {weights.header.native_crop} contradicts {found.cells} positions")
    if found.grid is None and found.cells != math.prod(encoder.native_grid):
        raise ValueError(
            f"{POSITIONS} holds {found.cells} positions, which fill no cube; expected a cube or "
            f"{_times(encoder.native_grid)}"
        )
    return found.grid or encoder.native_grid


def _check_shapes(wanted: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    wrong = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    if wrong:
        raise ValueError(f"{len(wrong)} tensors have another shape: {_some(wrong)}")


def _check_finite(tensors: dict[str, Tensor]) -> None:
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"{len(broken)} tensors hold NaN or infinity ({_some(broken)}); that training diverged")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f", ... {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _times(grid: Sequence[int]) -> str:
    return "x".join(map(str, grid))
