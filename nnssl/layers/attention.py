"""The pre-norm transformer block of a ViT: self-attention, MLP, LayerScale and batch-subset stochastic depth."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnssl.layers.joint_batch import random_rows

LAYER_SCALE_INIT = 1e-5  # DINOv2 and 3DINO
SHALLOW_SCALE_INIT, SHALLOW_DEPTH = 0.1, 18  # CaiT
NORM_EPS = 1e-6
INIT_STD = 0.02


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused query-key-value projection (rows ordered q | k | v, head-major)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"attention of width {dim} cannot be split into {heads} heads; use a divisor of {dim}")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mix tokens (B, N, dim) -> (B, N, dim)."""
        query, key, value = self._split_heads(tokens)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def weights(self, tokens: Tensor) -> Tensor:
        """Attention of every query to every key, (B, heads, N, N) float32; rows sum to 1."""
        query, key, _ = self._split_heads(tokens)
        logits = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        return logits.float().softmax(dim=-1)

    def _split_heads(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return query, key, value


def layer_scale_init(depth: int) -> float:
    """Initial LayerScale of all blocks: 0.1 up to 18 blocks, 1e-5 for deeper ones (CaiT, arXiv:2103.17239, sec. 2).

    3DINO and DINOv2 use 1e-5 at every depth; 3DINO's ViT-L (24 blocks) gets the same here. With 1e-5 the class tokens
    of all images are equal at first, so that the teacher's targets are uniform; short runs of shallow ViTs stay there.
    """
    return SHALLOW_SCALE_INIT if depth <= SHALLOW_DEPTH else LAYER_SCALE_INIT


class Mlp(nn.Module):
    """Two linear layers with an exact (erf) GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim), each token on its own."""
        return self.fc2(functional.gelu(self.fc1(tokens)))


class LayerScale(nn.Module):
    """A learnt factor per channel on a residual branch (Touvron et al. 2021, arXiv:2103.17239)."""

    def __init__(self, dim: int, init: float = LAYER_SCALE_INIT) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, tokens: Tensor) -> Tensor:
        """Scale (..., dim)."""
        return tokens * self.gamma


class Block(nn.Module):
    """x + LS1(attention(LN1 x)), then x + LS2(MLP(LN2 x)).

    The residual stream keeps its dtype under autocast: an update scaled by 1e-5 would vanish in bfloat16.
    """

    def __init__(
        self, dim: int, heads: int, *, mlp_ratio: float = 4.0, drop_path: float = 0.0, scale: float = LAYER_SCALE_INIT
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = SelfAttention(dim, heads)
        self.ls1 = LayerScale(dim, scale)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = LayerScale(dim, scale)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        rate = self.drop_path if self.training else 0.0
        tokens = add_branch(tokens, self._attention_branch, drop_rate=rate)
        return add_branch(tokens, self._mlp_branch, drop_rate=rate)

    def attention(self, tokens: Tensor) -> Tensor:
        """Attention weights (B, heads, N, N) of this block for its input tokens."""
        return self.attn.weights(self.norm1(tokens))

    def _attention_branch(self, tokens: Tensor) -> Tensor:
        return self.ls1(self.attn(self.norm1(tokens)))

    def _mlp_branch(self, tokens: Tensor) -> Tensor:
        return self.ls2(self.mlp(self.norm2(tokens)))


def add_branch(tokens: Tensor, branch: Callable[[Tensor], Tensor], *, drop_rate: float) -> Tensor:
    """Add a residual branch, computed on a random subset of the batch only (stochastic depth of DINOv2).

    max(int(B * (1 - drop_rate)), 1) samples are drawn without replacement from torch's global CPU generator; their
    branch is added back times B / subset, so that the expectation over draws is the full sum. Where processes share a
    batch (`joint_batch`), B counts the rows of all of them and the cost of a process varies with its luck; DINOv2 draws
    in each process apart.

    Args:
        tokens: (B, N, dim).
        branch: (b, N, dim) -> (b, N, dim) for any b > 0.
        drop_rate: in [0, 1); 0 computes the branch on all samples.
    """
    if drop_rate == 0.0:
        return tokens + branch(tokens)
    chosen, scale = random_rows(len(tokens), 1 - drop_rate)
    if len(chosen) == 0:  # every parameter keeps a gradient, here 0: data-parallel training waits for it
        chosen, scale = chosen.new_zeros(1), 0.0
    chosen = chosen.to(tokens.device, non_blocking=True)
    added = branch(tokens[chosen]).to(tokens.dtype)
    return torch.index_add(tokens, 0, chosen, added, alpha=scale)


def init_linear(module: nn.Module) -> None:
    """ViT initialisation of one module: linear layers truncated normal (std 0.02) with zero bias; others untouched."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
