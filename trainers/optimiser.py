"""AdamW for pretext tasks: which parameter learns how fast and how strongly it decays (3DINO, DINOv2)."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from nnssl.losses.schedules import cosine, peak_learning_rate, warmup_cosine, zero_until
from nnssl.recipe import PretrainRecipe

TOKENS = ("cls_token", "pos_embed", "mask_token")
UNDECAYED = ("norm", "gamma", "relative_position_bias_table")  # and biases; the table as in the Swin paper's code
PATCH_EMBED = ("patch_embed", "down_projection")  # of ViT and Swin, of Primus
_BLOCK = re.compile(r"(?:eva\.)?(?:layers\.(\d+)\.)?blocks\.(\d+)\.")  # of Primus, Swin, ViT
_MERGE = re.compile(r"layers\.(\d+)\.downsample\.")


class Multipliers(NamedTuple):
    """What one parameter makes of the scheduled learning rate and weight decay."""

    lr_multiplier: float
    weight_decay_multiplier: float
    last_layer: bool  # the prototypes, which rest in the first steps


@dataclass(frozen=True)
class Rates:
    """Scheduled values of one step, before the multipliers."""

    lr: float
    last_layer_lr: float
    weight_decay: float


def rates_at(step: int, recipe: PretrainRecipe) -> Rates:
    """Learning rates (linear warm-up, then cosine) and weight decay (cosine) of step `step` of `recipe.steps`.

    >>> rates_at(12_499, PretrainRecipe()).lr == 2e-3 * math.sqrt(512 / 1024)  # end of the warm-up
    """
    lr = warmup_cosine(
        step,
        recipe.steps,
        warmup_steps=round(recipe.steps * recipe.warmup_fraction),
        base=peak_learning_rate(recipe.base_lr, recipe.batch_size) if recipe.lr_rule == "sqrt" else recipe.base_lr,
        final=recipe.min_lr,
    )
    start, end = recipe.weight_decay
    return Rates(
        lr=lr,
        last_layer_lr=zero_until(step, round(recipe.steps * recipe.freeze_last_layer), lr),
        weight_decay=cosine(step, recipe.steps, start, end),
    )


def build_optimiser(parts: Mapping[str, nn.Module], recipe: PretrainRecipe) -> torch.optim.AdamW:
    """AdamW over `PretextTask.trained_parts()`; parameters with equal multipliers share a group.

    Parameters without gradient are left out; one that several parts share is taken once.
    """
    groups: dict[Multipliers, list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for part in parts.values():
        blocks = blocks_of(name for name, _ in part.named_parameters())
        for name, parameter in part.named_parameters():
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                groups.setdefault(multipliers_of(name, blocks, recipe), []).append(parameter)
    if not groups:
        raise ValueError(f"pretext task trains nothing: no parameter of {sorted(parts)} requires a gradient")
    described = [{"params": parameters, **key._asdict()} for key, parameters in groups.items()]
    return torch.optim.AdamW(described, betas=(0.9, 0.999), eps=1e-8, fused=_can_fuse())


def set_rates(optimiser: torch.optim.Optimizer, rates: Rates) -> None:
    """Give every group its learning rate and weight decay of this step."""
    for group in optimiser.param_groups:
        group["lr"] = (rates.last_layer_lr if group["last_layer"] else rates.lr) * group["lr_multiplier"]
        group["weight_decay"] = rates.weight_decay * group["weight_decay_multiplier"]


def multipliers_of(name: str, blocks: Sequence[str], recipe: PretrainRecipe) -> Multipliers:
    """Multipliers of a parameter by its name inside its part.

    Tokens and patch embedding are layer 0, block i is layer i + 1 with the merge that follows it, everything else
    (final norm, heads) layer depth + 1; the learning rate falls by `layer_decay` per layer below the top. Biases, norms
    and layer scales do not decay unless `decay_all`; the class token, the position table and the gains of the
    prototypes do, as in the reference.

    Args:
        name: such as "blocks.3.attn.qkv.weight" or "last_layer.weight_v".
        blocks: `blocks_of` the part; none for a head, which then learns at the full rate.
    """
    lr = recipe.layer_decay ** (len(blocks) + 1 - _layer(name, blocks))
    if name.startswith(PATCH_EMBED):
        lr *= recipe.patch_embed_lr
    decays = recipe.decay_all or not (name.endswith(".bias") or any(word in name for word in UNDECAYED))
    return Multipliers(lr, float(decays), "last_layer" in name)


def blocks_of(names: Iterable[str]) -> list[str]:
    """Prefixes of a part's blocks in the order of the data: "blocks.0.", ... or "layers.0.blocks.0.", ..."""
    found = {match[0]: (int(match[1] or 0), int(match[2])) for name in names if (match := _BLOCK.match(name))}
    return sorted(found, key=lambda prefix: found[prefix])


def _layer(name: str, blocks: Sequence[str]) -> int:
    block, merge = _BLOCK.match(name), _MERGE.match(name)
    if block:
        return blocks.index(block[0]) + 1
    if merge:
        return max(i for i, prefix in enumerate(blocks, start=1) if prefix.startswith(f"layers.{merge[1]}."))
    first = name.removeprefix("eva.") in TOKENS or name.startswith(PATCH_EMBED)
    return 0 if blocks and first else len(blocks) + 1


def _can_fuse() -> bool:
    """One kernel for all parameters: six times as fast as a loop on a CPU, which has it since torch 2.4."""
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    return torch.cuda.is_available() or (major, minor) >= (2, 4)
