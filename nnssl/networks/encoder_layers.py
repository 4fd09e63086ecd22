"""The layers of an encoder in the order of the data, and which of them are trained."""

import re

from torch import nn

from nnssl.encoders.base import Encoder
from nnssl.layers.low_rank import NAMES, LowRankLinear

_STAGE_NORM = re.compile(r"norm(\d)\.")  # of a Swin: registered at the end, used after its stage


def parameter_layers(encoder: Encoder) -> dict[str, int]:
    """The layer of every parameter: 0 comes before the first block, i + 1 is block i and what follows it."""
    blocks = enumerate(encoder.blocks_in_order, start=1)
    of_block = {parameter: layer for layer, block in blocks for parameter in block.parameters()}
    layers: dict[str, int] = {}
    current = 0
    for name, parameter in encoder.named_parameters():
        stage = _STAGE_NORM.match(name)
        if stage:
            layers[name] = max(layer for other, layer in layers.items() if other.startswith(f"layers.{stage[1]}."))
        else:
            current = layers[name] = of_block.get(parameter, current)
    return layers


def freeze(encoder: Encoder, *, last: int) -> list[nn.Module]:
    """Take the gradient from all but the `last` blocks and what follows them; return these blocks.

    Raises:
        ValueError: the encoder has fewer blocks.
    """
    blocks = encoder.blocks_in_order
    if not 0 <= last <= len(blocks):
        raise ValueError(
            f"unfreezing the last {last} blocks of {encoder.spec.name!r}: it has {len(blocks)}; "
            "use frozen=False to train all of it"
        )
    layers = parameter_layers(encoder)
    for name, parameter in encoder.named_parameters():
        if layers[name] <= len(blocks) - last:
            parameter.requires_grad_(False)
    return blocks[len(blocks) - last :]


def input_layer(encoder: Encoder) -> str:
    """Name of the first convolution: the only layer whose shape depends on the number of image channels."""
    return next(name for name, module in encoder.named_modules() if isinstance(module, nn.Conv3d))


def add_low_rank(encoder: Encoder, rank: int) -> None:
    """Put low-rank additions beside every projection of every attention.

    Raises:
        ValueError: the encoder has no attention, or the rank does not fit.
    """
    attentions = [block.get_submodule("attn") for block in encoder.blocks_in_order if hasattr(block, "attn")]
    if not attentions:
        raise ValueError(
            f"low-rank adaptation of {encoder.spec.name!r}: it has no attention; use unfreeze_last or frozen=False"
        )
    for attention in attentions:
        for name, layer in list(attention.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(attention, name, LowRankLinear.around(layer, rank))


def is_low_rank(name: str) -> bool:
    """Whether a parameter was added by `add_low_rank`."""
    return name.endswith(NAMES)
