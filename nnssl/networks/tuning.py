"""How fast each part of a segmentor learns: the decoder at the full rate, the encoder slower towards its input."""

from typing import Any

from torch import nn

from nnssl.networks.encoder_layers import input_layer, is_low_rank, parameter_layers
from nnssl.networks.segmentor import EncoderSegmentor


def trainable_groups(segmentor: EncoderSegmentor, lr: float, layer_decay: float) -> list[dict[str, Any]]:
    """Optimiser groups of all that is trained, with layer-wise decay (Clark et al. 2020, arXiv:2003.10555).

    Block i of L (0-based), and what follows it, learns at lr * layer_decay ** (L - i), what comes before the first
    block at lr * layer_decay ** (L + 1); what is new (neck, decoder, low-rank additions, a re-initialised input
    layer) at lr.

    Args:
        lr: above 0.
        layer_decay: in (0, 1]; 1 is the same rate everywhere, 0.75 is usual.

    Returns:
        Groups {"params", "lr", "lr_multiplier"}, the fastest first.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay {layer_decay}: must be above 0 and at most 1 (no decay)")
    powers = _powers(segmentor)
    groups: dict[int, list[nn.Parameter]] = {}
    for parameter in segmentor.parameters():
        if parameter.requires_grad:
            power = powers.get(parameter, 0) if layer_decay < 1 else 0
            groups.setdefault(power, []).append(parameter)
    rates = {power: layer_decay**power for power in sorted(groups)}
    return [{"params": groups[power], "lr": lr * rate, "lr_multiplier": rate} for power, rate in rates.items()]


def _powers(segmentor: EncoderSegmentor) -> dict[nn.Parameter, int]:
    """The power of the decay of every pretrained parameter: 1 for the last block, one more for each before it."""
    encoder = segmentor.encoder
    new = f"{input_layer(encoder)}." if segmentor.channels == "reinit" else None
    top, layers = len(encoder.blocks_in_order) + 1, parameter_layers(encoder)
    return {
        parameter: top - layers[name]
        for name, parameter in encoder.named_parameters()
        if not is_low_rank(name) and not (new and name.startswith(new))
    }
