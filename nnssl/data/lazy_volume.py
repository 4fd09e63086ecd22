"""A stored volume of which only the boxes that are asked for are read and decompressed."""

from pathlib import Path

import blosc2
import numpy as np
import torch
from torch import Tensor

WHOLE_SHARE = 0.25  # of the voxels: a larger box makes the whole volume be read once and kept. Blocks that stick out
# double the cost of a box, and tasks with boxes of this size (3DINO's global crops) ask for more than one
_INTEGERS = {torch.float16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


class LazyVolume:
    """One channel of a stored case: `shape` and slicing of a (1, X, Y, Z) float32 tensor, read where it is indexed.

    Stands in for the tensor in `PretextTask.prepare`; what is read is freed with this object.

    Args:
        path: a `.b2nd` file of (C, X, Y, Z) in any floating type.
        channel: which of the C.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be opened; later, on reading: it cannot be decoded, or a box holds NaN or infinite voxels.
    """

    def __init__(self, path: Path, channel: int) -> None:
        self.path, self.channel = path, channel
        self._stored = open_stored(path)
        self._whole: Tensor | None = None
        self.shape = torch.Size((1, *self._stored.shape[1:]))

    def __getitem__(self, box: slice | tuple[slice, ...]) -> Tensor:
        """Voxels of a box; the first slice counts channels, of which there is one, and missing ones mean all."""
        given = box if isinstance(box, tuple) else (box,)
        channel, *sides = (*given, *[slice(None)] * (4 - len(given)))
        edges = [len(range(*side.indices(full))) for side, full in zip(sides, self.shape[1:], strict=True)]
        if self._whole is None and np.prod(edges) > WHOLE_SHARE * self.shape.numel():
            self._whole = self._read(())
        crop = self._read(tuple(sides)) if self._whole is None else self._whole[tuple(sides)]
        return crop.float().contiguous()[None][channel]

    def _read(self, box: tuple[slice, ...]) -> Tensor:
        """In the stored type, so that a whole volume that is kept takes no more than it must."""
        try:
            values = torch.from_numpy(np.asarray(self._stored[(self.channel, *box)]))
        except (RuntimeError, ValueError, OSError) as error:
            raise damaged(self.path, str(error)) from error
        if not _finite(values):
            raise damaged(self.path, "it holds NaN or infinite voxels")
        return values


def _finite(values: Tensor) -> bool:
    """Whether no voxel is NaN or infinite. Bits of floats in [0, 1], as volumes are stored, compare as integers do."""
    if not values.numel():
        return True
    integer = _INTEGERS.get(values.dtype, values.dtype)
    low, high = (int(bits) for bits in values.view(integer).aminmax())
    one = int(torch.ones((), dtype=values.dtype).view(integer))
    return (low >= 0 and high <= one) or bool(values.isfinite().all())


def open_stored(path: Path) -> blosc2.NDArray:
    """A stored case of (C, X, Y, Z), of which nothing is decompressed yet; errors as for `LazyVolume`."""
    if not path.is_file():
        raise FileNotFoundError(f"reading stored volume {path}: no such file; run nnssl_plan_and_preprocess again")
    try:
        return blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
    except (RuntimeError, ValueError, OSError) as error:
        raise damaged(path, str(error)) from error


def damaged(path: Path, reason: str) -> ValueError:
    """What to say of a stored file that cannot be used."""
    return ValueError(
        f"reading stored volume {path}: {reason or 'it cannot be decoded'}; "
        "delete it and run nnssl_plan_and_preprocess again for this data set"
    )
