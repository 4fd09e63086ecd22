"""What encoders built of dynamic-network-architectures (MIC-DKFZ) share: its parts on demand, and intensities."""

import importlib
from typing import Any

from nnssl.encoders.base import IntensityRange

PACKAGE = "dynamic_network_architectures"

# OpenMind encoders were trained on z-scores of the whole image, whose ends depend on the image. On 280 scans of five
# data sets (CT and MR) the percentiles 0.05 and 99.95 lie at z-scores of -0.5 to -1.7 and 2.8 to 5.0 (medians).
Z_SCORE_ENDS = (-1.0, 4.0)


def part(module: str, name: str) -> Any:
    """A class of dynamic-network-architectures, such as part("building_blocks.eva", "Eva").

    Raises:
        ValueError: the package (or timm, which it uses) cannot be imported.
    """
    try:
        return getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"building a Primus or ResEnc encoder needs dynamic-network-architectures 0.4 with timm, which does not "
            f"load here ({error}); install it with: pip install 'dynamic-network-architectures>=0.4.4,<0.5'"
        ) from error


def z_score_intensity() -> IntensityRange:
    """The nearest to z-scores that stored [0, 1] intensities allow: percentiles mapped to `Z_SCORE_ENDS`."""
    return IntensityRange(encoder_range=Z_SCORE_ENDS)
