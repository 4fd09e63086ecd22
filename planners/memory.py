"""Memory of training, in bytes, from simple formulas with stated assumptions: no network is run to measure it.

Assumptions:
- activations are bf16 (autocast); a ViT block keeps 34 bytes per token and channel when attention is not stored
  (Korthikanti et al. 2022, arXiv:2205.05198, without the attention map, as PyTorch's fused attention does);
- adapter and decoder keep what autograd was seen to save for EncoderSegmentor (ViT-Ti and ViT-S, patch 8 and 16,
  adapter 96 and 192, 1 to 4 channels): the formula is within 10 % of those six counts;
- gradients in flight add a quarter; trained parameters take 16 bytes (weight, gradient, two AdamW moments), frozen
  and teacher ones 6 (fp32 and a bf16 copy); 10 % and 0.5 GB are left to the framework.
For pretraining no measurement exists: the paper's ViT-L at 96^3, 128 volumes on 80 GB with optimiser states sharded
over 4 GPUs, is 98 GB by the formula (which does not shard).
"""

from dataclasses import dataclass
from functools import cache

import torch

from nnssl.encoders import build_encoder

GB = 1e9
BLOCK_BYTES = 34  # per token and channel of one transformer block
TRAINED, FROZEN = 16, 6  # bytes per parameter
WIDTH_BYTES = 18_000  # saved per ViT token and adapter channel: interactions, pyramid, decoder input
TOKEN_BYTES = 630_000  # saved per ViT token whatever the width: spatial prior, coarse decoder levels
VOXEL_BYTES, CLASS_BYTES = 800, 22  # saved per voxel of the crop: decoder at full resolution; per class: logits, loss
IN_FLIGHT = 1.25
ADAPTER_PARAMETERS, WIDTH_PARAMETERS = 6_400_000, 100  # trained: constant, and per adapter channel squared
PROTOTYPES, HEAD_HIDDEN, BOTTLENECK = 65_536, 2048, 256
GLOBAL_VIEWS, LOCAL_VIEWS = 2, 8
MASKED_SHARE = 0.5 * (0.2 + 0.75) / 2  # iBOT: half of the global views lose 20-75 % of their tokens


@dataclass(frozen=True)
class EncoderSize:
    """What the formulas need to know of an encoder."""

    parameters: int
    dim: int
    patch: int

    @property
    def bytes_per_token(self) -> float:
        """Activations kept for the backward pass; a transformer has about 12 dim^2 parameters per block."""
        return BLOCK_BYTES * self.parameters / (12 * self.dim)


@cache
def encoder_size(name: str) -> EncoderSize:
    """Sizes of an encoder of the table, from a network without memory (meta device)."""
    with torch.device("meta"):
        encoder = build_encoder(name)
    count = sum(parameter.numel() for parameter in encoder.parameters())
    return EncoderSize(count, encoder.spec.channels[-1], encoder.spec.crop_multiple)


def finetune_bytes(size: EncoderSize, tokens: int, batch: int, *, channels: int, classes: int, width: int) -> float:
    """Training of an EncoderSegmentor with a frozen encoder; gradients pass through it, so its activations are kept.

    Args:
        tokens: ViT tokens per crop.
        channels: image channels; each passes through the encoder on its own.
        width: adapter width.
    """
    head = WIDTH_BYTES * width + TOKEN_BYTES + size.patch**3 * (VOXEL_BYTES + CLASS_BYTES * classes)
    activations = IN_FLIGHT * batch * tokens * (channels * size.bytes_per_token + head)
    trained = ADAPTER_PARAMETERS + WIDTH_PARAMETERS * width**2
    return activations + FROZEN * size.parameters + TRAINED * trained


def pretrain_bytes(size: EncoderSize, global_tokens: int, local_tokens: int, batch: int) -> float:
    """3DINO: 2 global and 8 local views through the student, global ones through the teacher, two heads."""
    tokens = GLOBAL_VIEWS * (global_tokens + 1) + LOCAL_VIEWS * (local_tokens + 1)
    scored = GLOBAL_VIEWS + LOCAL_VIEWS + MASKED_SHARE * GLOBAL_VIEWS * global_tokens
    targets = GLOBAL_VIEWS + MASKED_SHARE * GLOBAL_VIEWS * global_tokens
    # student: bf16 logits, their fp32 log-softmax and gradient; teacher: fp32 logits and assignments
    logits = PROTOTYPES * 8 * (scored + targets)
    voxels = (GLOBAL_VIEWS * global_tokens + LOCAL_VIEWS * local_tokens) * size.patch**3 * 4 * 3
    head = size.dim * HEAD_HIDDEN + HEAD_HIDDEN**2 + HEAD_HIDDEN * BOTTLENECK + BOTTLENECK * PROTOTYPES
    weights = (TRAINED + FROZEN) * (size.parameters + 2 * head)
    return batch * (tokens * size.bytes_per_token + logits + voxels) + weights


def usable_bytes(target_gb: float) -> float:
    """What remains of the memory target for the formulas above."""
    return max(0.0, 0.9 * target_gb * GB - 0.5 * GB)
