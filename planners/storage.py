"""Resolution worth storing for pretraining: no more voxels than the smallest crop of a crop policy needs.

A view that shows a share of an edge and is resized to `side` voxels is averaged down from a stored edge longer than
side / share. The smallest share of all views therefore bounds what is worth storing.
"""

import math
from collections.abc import Sequence

from nnssl.data.stored_shape import StoredLimit
from nnssl.geometry import Triple
from nnssl.pretext.threedino import ThreeDinoConfig
from nnssl.transforms.views import CropRule

Views = Sequence[tuple[CropRule, Triple]]  # how views are cropped, and the voxels they are resized to


def stored_limit(views: Views, depth_axis: int) -> StoredLimit:
    """Most voxels per axis that views of this policy can show, X Y Z.

    Depth: side / smallest share of the depth edge. Plane: of an area `a` of a plane and a ratio `r` of its sides (in
    sides of the view), the shorter side is sqrt(a * r) of the edge, r <= 1, so side / sqrt(smallest area * smallest
    ratio). 3DINO's views of 96 and 48 voxels give 147 in the plane (96 / sqrt(0.48 * 0.9); local views 127) and 240 in
    depth (48 / 0.2; global views 192); of 112 and 64 voxels 171 and 320.

    The bound of the plane is exact where the plane has the proportions of the view. Elsewhere the longer edge is held
    to it, and the smallest crops of a plane with edges 4 : 3 are enlarged by up to sqrt(4 / 3).
    """
    sides = [0.0, 0.0, 0.0]
    for rule, size in views:
        shares = [smallest_plane_share(rule)] * 3
        shares[depth_axis] = rule.depth[0]
        sides = [max(most, side / share) for most, side, share in zip(sides, size, shares, strict=True)]
    x, y, z = (math.ceil(round(side, 6)) for side in sides)
    return StoredLimit((x, y, z), depth_axis)


def smallest_plane_share(rule: CropRule) -> float:
    """Smallest side of a random crop, as a share of the edge of a plane with the view's proportions."""
    low, high = rule.ratio
    return math.sqrt(rule.area[0] * min(low, 1 / high))


def threedino_views(global_crop: Triple, local_crop: Triple, config: ThreeDinoConfig | None = None) -> Views:
    """3DINO's crop policy; the config's own shares where one is given."""
    chosen = config or ThreeDinoConfig()
    return [
        (CropRule(chosen.global_area, chosen.global_depth), global_crop),
        (CropRule(chosen.local_area, chosen.local_depth), local_crop),
    ]
