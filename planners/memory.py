"""Memory of training a segmentor, in bytes, from simple formulas with stated assumptions: nothing is run.

Assumptions:
- a frozen encoder keeps nothing where no gradient passes through it (every neck but the ViT-Adapter);
- ViT-Adapter and the U-Net on it keep what autograd was seen to save for EncoderSegmentor (ViT-Ti and ViT-S, patch 8
  and 16, adapter 96 and 192, 1 and 2 channels; interactions, the blocks between them and the input block are computed
  again in the backward pass): the formula is within 3 % of those counts;
- encoders (`encoder_memory`) and other decoders (`decoder_memory`) are counted block by block, in bf16;
- gradients in flight add a quarter; trained parameters take 16 bytes (weight, gradient, two AdamW moments), frozen
  and teacher ones 6 (fp32 and a bf16 copy); 0.27 GB are the framework's (measured on the CPU: 0.20 to 0.30 above the
  rest of the formula for ViT-Ti, ViT-S and Swin; on a GPU the CUDA context, which PyTorch does not count); of a memory
  target, 10 % and another 0.23 GB are left free.

The whole is within 25 % of the measured peak of training on the CPU in bf16 (`tests/planners/test_memory.py` measures).
"""

from collections.abc import Sequence
from math import prod

from nnssl.planners.decoder_memory import decoder_bytes_per_voxel, decoder_parameters
from nnssl.planners.encoder_memory import encoder_size
from nnssl.planners.network import NetworkPlan

GB = 1e9
TRAINED, FROZEN = 16, 6  # bytes per parameter
WIDTH_BYTES = 3_930  # saved per ViT token and adapter channel: pyramid, decoder input
TOKEN_BYTES = 479_000  # saved per ViT token whatever the width: spatial prior, coarse decoder levels
VOXEL_BYTES, CLASS_BYTES = 472, 22  # saved per voxel of the crop: decoder at full resolution; per class: logits, loss
IN_FLIGHT = 1.25
FRAMEWORK_BYTES, FREE_BYTES, FREE_SHARE = 0.27e9, 0.23e9, 0.1
INTERACTIONS = 4  # of a ViT-Adapter; one is computed again at a time
AGAIN_BYTES = 3_500  # of that one per ViT token and adapter channel
ADAPTER_PARAMETERS, WIDTH_PARAMETERS = 6_400_000, 100  # trained: constant, and per adapter channel squared


def finetune_bytes(network: NetworkPlan, crop: Sequence[int], batch: int) -> float:
    """Training of an EncoderSegmentor on crops of these sides (voxels)."""
    alive = prod(crop) * (kept_per_voxel(network) + recomputed_per_voxel(network))
    if network.adapter_width is None:
        trained = decoder_parameters(network)
    else:
        trained = ADAPTER_PARAMETERS + WIDTH_PARAMETERS * network.adapter_width**2
    encoder = (FROZEN if network.frozen else TRAINED) * encoder_size(network.encoder).parameters
    return IN_FLIGHT * batch * alive + encoder + TRAINED * trained + FRAMEWORK_BYTES


def kept_per_voxel(network: NetworkPlan) -> float:
    """Bytes that autograd keeps per voxel of the crop until the backward pass."""
    kept: float = CLASS_BYTES * network.num_classes
    if network.adapter_width is not None:
        per_token = WIDTH_BYTES * network.adapter_width + TOKEN_BYTES
        return kept + VOXEL_BYTES + per_token / network.encoder.strides[-1] ** 3
    if network.keeps_activations:
        kept += network.passes * encoder_size(network.encoder).bytes_per_voxel
    return kept + decoder_bytes_per_voxel(network)


def recomputed_per_voxel(network: NetworkPlan) -> float:
    """Bytes per voxel of the crop of one interaction of a ViT-Adapter while it is computed again."""
    if network.adapter_width is None:
        return 0.0
    blocks = network.passes * encoder_size(network.encoder).bytes_per_voxel / INTERACTIONS
    return blocks + AGAIN_BYTES * network.adapter_width / network.encoder.strides[-1] ** 3


def usable_bytes(target_gb: float) -> float:
    """What remains of the memory target for the formulas above."""
    return max(0.0, (1 - FREE_SHARE) * target_gb * GB - FREE_BYTES)


def target_for(needed: float) -> float:
    """The memory target in GB of which `needed` bytes are usable."""
    return (needed + FREE_BYTES) / (1 - FREE_SHARE) / GB
