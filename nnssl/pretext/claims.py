"""Which parameters of an encoder an objective cannot reach, by encoder family: values of `PretextTask.UNTRAINED`."""

from collections.abc import Mapping

# A Swin's norm0 to norm3 belong to its finer maps; mask tokens are used where tokens are hidden.
COARSEST_MAP_HIDDEN_TOKENS: Mapping[str, tuple[str, ...]] = {"swin": ("norm[0-3].*",)}
COARSEST_MAP: Mapping[str, tuple[str, ...]] = {
    "vit": ("mask_token",),
    "primus": ("mask_token",),
    "swin": ("mask_token", "norm[0-3].*"),
}
