"""Memory of pretraining, in bytes, from formulas: 3DINO for token encoders, two whole views (SMIT) for pyramids.

Within 25 % of the peak measured on the CPU in bf16 (`tests/planners/test_memory.py`; 2 volumes: ViT-Ti/16 at 48^3 1.46
GB and 1.43 by the formula, ViT-Ti/8 at 48^3 1.51 and 1.70, swin_tiny at 64^3 1.41 and 1.48). Not measured on a GPU. The
papers: 3DINO's ViT-L at 96^3, 128 volumes on 80 GB with optimiser states sharded over 4 GPUs, is 98 GB by the formula
(which does not shard). SMIT's code notes 6 volumes of 96^3 on 32 GB in float32; the formula gives smit_96 (whose third
stage is twice as deep) 6 volumes in 14 GB of bf16.
"""

from collections.abc import Sequence
from math import prod

from nnssl.encoders.base import EncoderSpec
from nnssl.planners.encoder_memory import encoder_size
from nnssl.planners.memory import FRAMEWORK_BYTES, FROZEN, IN_FLIGHT, TRAINED

VOXEL_COPIES = 3 * 4  # float32 copies of every view
HEAD_HIDDEN, BOTTLENECK = 2048, 256
LOGIT_BYTES = 8  # student: bf16 logits, their fp32 log-softmax and gradient; teacher: fp32 logits and assignments
DINO_PROTOTYPES, GLOBAL_VIEWS, LOCAL_VIEWS = 65_536, 2, 8
MASKED_SHARE = 0.5 * (0.2 + 0.75) / 2  # iBOT: half of the global views lose 20-75 % of their tokens
SMIT_PROTOTYPES, SMIT_VIEWS = 8_192, 2


def pretrain_bytes(spec: EncoderSpec, global_crop: Sequence[int], local_crop: Sequence[int], batch: int) -> float:
    """Pretraining with the objective of the encoder's own paper; other objectives need less."""
    if spec.is_pyramid:
        return smit_bytes(spec, global_crop, batch)
    return threedino_bytes(spec, global_crop, local_crop, batch)


def assumed_task(spec: EncoderSpec) -> str:
    """The pretext task whose memory `pretrain_bytes` counts."""
    return "smit" if spec.is_pyramid else "threedino"


def assumed_views(spec: EncoderSpec) -> str:
    """What `pretrain_bytes` counts, for the table."""
    return "SMIT's 2 global views" if spec.is_pyramid else "3DINO's 2 global and 8 local views"


def threedino_bytes(spec: EncoderSpec, global_crop: Sequence[int], local_crop: Sequence[int], batch: int) -> float:
    """3DINO: 2 global and 8 local views through the student, global ones through the teacher, two heads."""
    size = encoder_size(spec)
    large, small = prod(spec.token_grid(global_crop)), prod(spec.token_grid(local_crop))
    tokens = GLOBAL_VIEWS * (large + 1) + LOCAL_VIEWS * (small + 1)
    scored = GLOBAL_VIEWS + LOCAL_VIEWS + MASKED_SHARE * GLOBAL_VIEWS * large
    targets = GLOBAL_VIEWS + MASKED_SHARE * GLOBAL_VIEWS * large
    logits = DINO_PROTOTYPES * LOGIT_BYTES * (scored + targets)
    cell = spec.token_stride**3
    voxels = (GLOBAL_VIEWS * large + LOCAL_VIEWS * small) * cell * VOXEL_COPIES
    weights = (TRAINED + FROZEN) * (size.parameters + 2 * _head_parameters(spec.token_channels, DINO_PROTOTYPES))
    return batch * (tokens * cell * size.bytes_per_voxel + logits + voxels) + weights + FRAMEWORK_BYTES


def smit_bytes(spec: EncoderSpec, crop: Sequence[int], batch: int) -> float:
    """SMIT: two views of one size through student and teacher, every token scored by two heads, one reconstruction."""
    size, voxels = encoder_size(spec), prod(crop)
    logits = 2 * SMIT_PROTOTYPES * LOGIT_BYTES * (prod(spec.token_grid(crop)) + 1)
    view = voxels * (IN_FLIGHT * size.bytes_per_voxel + VOXEL_COPIES) + logits
    heads = 2 * _head_parameters(spec.token_channels, SMIT_PROTOTYPES)
    reconstruction = spec.channels[-1] * spec.strides[-1] ** 3  # one linear map to the voxels of a cell
    weights = (TRAINED + FROZEN) * (size.parameters + heads + reconstruction)
    return batch * SMIT_VIEWS * view + weights + FRAMEWORK_BYTES


def _head_parameters(width: int, prototypes: int) -> int:
    return width * HEAD_HIDDEN + HEAD_HIDDEN**2 + HEAD_HIDDEN * BOTTLENECK + BOTTLENECK * prototypes
