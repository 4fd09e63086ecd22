"""How many voxels of a scan are stored: those of the plan's spacing, and no more than any crop can show."""

from collections.abc import Sequence
from dataclasses import dataclass

from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

from nnssl.geometry import Triple

LIMIT_KEY, DEPTH_KEY, DTYPE_KEY, SMOOTH_KEY = "stored_limit", "depth_axis", "stored_dtype", "antialias"


@dataclass(frozen=True)
class StoredLimit:
    """Most voxels per axis, X Y Z; the two axes of the plane shrink by one factor, which keeps their proportions."""

    voxels: Triple
    depth_axis: int

    def __post_init__(self) -> None:
        if len(self.voxels) != 3 or min(self.voxels) < 1 or self.depth_axis not in (0, 1, 2):
            raise ValueError(
                f"limit of stored volumes {self.voxels}, depth axis {self.depth_axis}: "
                "three sides of at least 1 voxel and an axis 0, 1 or 2 are needed"
            )

    def shape(self, shape: Sequence[float]) -> Triple:
        """The shape that is stored of a volume of `shape` voxels."""
        plane = [axis for axis in range(3) if axis != self.depth_axis]
        factors = [min(1.0, self.voxels[axis] / shape[axis]) for axis in range(3)]
        factors[plane[0]] = factors[plane[1]] = min(factors[axis] for axis in plane)
        x, y, z = (max(1, round(side * factor)) for side, factor in zip(shape, factors, strict=True))
        return x, y, z


def limit_of(configuration: dict[str, object]) -> StoredLimit | None:
    """The limit that a configuration of a plans file states."""
    voxels, axis = configuration.get(LIMIT_KEY), configuration.get(DEPTH_KEY)
    if not isinstance(voxels, list | tuple) or not isinstance(axis, int):
        return None
    x, y, z = (int(side) for side in voxels)
    return StoredLimit((x, y, z), axis)


def stored_shape(shape: Sequence[int], spacing_mm: Sequence[float], configuration: dict[str, object]) -> Triple:
    """Voxels that a configuration stores of a scan of `shape` voxels at `spacing_mm`, X Y Z."""
    x, y, z = (max(1, int(side)) for side in compute_new_shape(shape, spacing_mm, configuration["spacing"]))  # type: ignore[arg-type]
    limit = limit_of(configuration)
    return (x, y, z) if limit is None else limit.shape((x, y, z))
