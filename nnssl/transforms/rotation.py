"""Turns by multiples of 90 degrees: four about one axis, or all 24 orientations of a cube."""

import torch
from torch import Tensor

CLASSES = (4, 24)
_FACES = ((0, 0), (0, 1), (0, 2), (0, 3), (1, 1), (1, 3))  # (axis, quarters) that bring each face to +Z


def quarter_turns(volume: Tensor, quarters: int, axis: int) -> Tensor:
    """Turn a volume (..., X, Y, Z) right-handedly by `quarters` times 90 degrees about `axis` (0 X, 1 Y, 2 Z).

    About X it turns Y towards Z, which is the reference's rotation; about Z, in the axial plane, X towards Y.
    """
    plane = ((axis + 1) % 3 - 3, (axis + 2) % 3 - 3)
    return volume.rot90(quarters, plane)


def orientation(volume: Tensor, index: int) -> Tensor:
    """One of the 24 orientations of a cube (..., S, S, S): index = 4 * face + quarter turns about Z.

    0 leaves the volume alone; 0 to 3 are the four turns about Z.
    """
    axis, quarters = _FACES[index // 4]
    return quarter_turns(quarter_turns(volume, quarters, axis), index % 4, 2)


def random_turns(views: Tensor, classes: int, *, axis: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Turn each view (V, C, X, Y, Z) by a class of its own, uniform among `classes`.

    Args:
        classes: 4 turns about `axis` (the other two sides are equal), or 24 orientations (all sides are equal).
        axis: 0 X, 1 Y, 2 Z.

    Returns:
        Turned views and their classes (V,) int64.
    """
    labels = torch.randint(classes, (len(views),), generator=generator)
    pairs = zip(views, labels.tolist(), strict=True)
    if classes == CLASSES[0]:
        turned = [quarter_turns(view, label, axis) for view, label in pairs]
    else:
        turned = [orientation(view, label) for view, label in pairs]
    return torch.stack(turned), labels


def check_turns(crop: tuple[int, int, int], classes: int, axis: int) -> None:
    """Raise a ValueError unless every turn maps a crop of these sides onto itself."""
    turned = [side for other, side in enumerate(crop) if classes != CLASSES[0] or other != axis]
    if len(set(turned)) > 1:
        raise ValueError(
            f"turning crops of {crop} voxels into {classes} classes: the sides {turned} that change places "
            "must be equal; take a cubic crop (--set global_crop=[96,96,96])"
        )
