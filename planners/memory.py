"""Memory of training a segmentor, in bytes, from simple formulas with stated assumptions: nothing is run.

Assumptions:
- a frozen encoder keeps nothing where no gradient passes through it (every neck but the ViT-Adapter);
- ViT-Adapter and the U-Net on it keep what autograd was seen to save for EncoderSegmentor (ViT-Ti and ViT-S, patch 8
  and 16, adapter 96 and 192, 1 to 4 channels): the formula is within 10 % of those six counts;
- encoders (`encoder_memory`) and other decoders (`decoder_memory`) are counted block by block, in bf16;
- gradients in flight add a quarter; trained parameters take 16 bytes (weight, gradient, two AdamW moments), frozen
  and teacher ones 6 (fp32 and a bf16 copy); 10 % and 0.5 GB are left to the framework.
"""

from collections.abc import Sequence
from math import prod

from nnssl.planners.decoder_memory import decoder_bytes_per_voxel, decoder_parameters
from nnssl.planners.encoder_memory import encoder_size
from nnssl.planners.network import NetworkPlan

GB = 1e9
TRAINED, FROZEN = 16, 6  # bytes per parameter
WIDTH_BYTES = 18_000  # saved per ViT token and adapter channel: interactions, pyramid, decoder input
TOKEN_BYTES = 630_000  # saved per ViT token whatever the width: spatial prior, coarse decoder levels
VOXEL_BYTES, CLASS_BYTES = 800, 22  # saved per voxel of the crop: decoder at full resolution; per class: logits, loss
IN_FLIGHT = 1.25
ADAPTER_PARAMETERS, WIDTH_PARAMETERS = 6_400_000, 100  # trained: constant, and per adapter channel squared


def finetune_bytes(network: NetworkPlan, crop: Sequence[int], batch: int) -> float:
    """Training of an EncoderSegmentor on crops of these sides (voxels)."""
    size = encoder_size(network.encoder)
    kept: float = CLASS_BYTES * network.num_classes
    if network.keeps_activations:
        kept += network.passes * size.bytes_per_voxel
    if network.adapter_width is None:
        kept += decoder_bytes_per_voxel(network)
        trained = decoder_parameters(network)
    else:
        per_token = WIDTH_BYTES * network.adapter_width + TOKEN_BYTES
        kept += VOXEL_BYTES + per_token / network.encoder.strides[-1] ** 3
        trained = ADAPTER_PARAMETERS + WIDTH_PARAMETERS * network.adapter_width**2
    encoder = (FROZEN if network.frozen else TRAINED) * size.parameters
    return IN_FLIGHT * batch * prod(crop) * kept + encoder + TRAINED * trained


def usable_bytes(target_gb: float) -> float:
    """What remains of the memory target for the formulas above."""
    return max(0.0, 0.9 * target_gb * GB - 0.5 * GB)
