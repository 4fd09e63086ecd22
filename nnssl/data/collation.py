"""Views of several samples as one batch."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import default_collate

Sample = dict[str, Any]  # of one image: tensors (V, ...) of V views, lists of V tensors, or numbers ()
Batch = dict[str, Tensor]


def collate(samples: Sequence[Sample]) -> Batch:
    """(B, V, ...) of B samples with V views each; numbers become (B,).

    Memory holds first views, then second ones, which is how tasks take them. Views in a list may lie in memory in any
    order: this is their only copy.
    """
    return {name: _stacked([sample[name] for sample in samples]) for name in samples[0]}


def _stacked(entries: list[Tensor | list[Tensor]]) -> Tensor:
    if isinstance(entries[0], Tensor) and not entries[0].ndim:
        return default_collate(entries)
    views = default_collate([view for same in zip(*entries, strict=True) for view in same])
    return views.unflatten(0, (-1, len(entries))).transpose(0, 1)
