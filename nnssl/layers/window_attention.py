"""The Swin block: pre-norm attention inside windows of a 3D grid, shifted in every second block, then an MLP."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from nnssl.layers.attention import INIT_STD, Mlp
from nnssl.layers.joint_batch import kept_rows
from nnssl.layers.window import WindowGroup, Windows, relative_index

MLP_RATIO = 4
RECOMPUTED_LOGITS = 2**19  # at once in the backward pass on CPU: 2 MiB, what its cache holds


class WindowAttention(nn.Module):
    """Multi-head self-attention among the cells of a window, with a learnt bias per relative position and head.

    Liu et al. 2021, arXiv:2103.14030, equation 4, in three dimensions.
    """

    def __init__(self, dim: int, heads: int, *, window: int, qkv_bias: bool) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"attention of width {dim} cannot be split into {heads} heads; use a divisor of {dim}")
        self.heads, self.window = heads, window
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 3, heads))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=INIT_STD)

    def forward(self, windows: Tensor, groups: Sequence[WindowGroup]) -> Tensor:
        """Mix the n cells of each window, (B, windows, n, dim) -> the same."""
        batch, _, cells, _ = windows.shape
        bias = self.position_bias(cells)
        qkv = self.qkv(windows).unflatten(-1, (3, self.heads, -1))
        mixed = []
        for start, stop, mask in groups:
            query, key, value = qkv[:, start:stop].flatten(0, 1).permute(2, 0, 3, 1, 4)
            out = biased_attention(query, key, value, bias if mask is None else bias + mask)
            mixed.append(out.transpose(1, 2).reshape(batch, stop - start, cells, -1))
        return self.proj(mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=1))

    def position_bias(self, cells: int) -> Tensor:
        """Bias (heads, n, n) of windows of n cells.

        A window that was clamped to n cells takes the first n rows and columns of the whole window's index. They are
        not the relative positions of the small window (2 % agree for 6^3 of 7^3), but what MONAI trains with.
        """
        table = self.relative_position_bias_table
        index = relative_index(self.window, table.device)[:cells, :cells]
        return table[index.flatten()].view(cells, cells, -1).permute(2, 0, 1).contiguous()


class SwinBlock(nn.Module):
    """x + attention(LN1 x), then x + MLP(LN2 x), on the cells of a grid, which keep their dtype under autocast."""

    def __init__(
        self, dim: int, heads: int, *, windows: Windows, qkv_bias: bool = False, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.windows, self.drop_path = windows, drop_path
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window=windows.side, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, MLP_RATIO * dim)

    def forward(self, cells: Tensor) -> Tensor:
        """(B, X, Y, Z, dim) -> (B, X, Y, Z, dim)."""
        _, x, y, z, _ = cells.shape
        layout = self.windows.layout((x, y, z), cells.device)
        tokens = cells.flatten(1, 3)
        mixed = self.attn(layout.cut(self.norm1(tokens)), layout.groups)
        tokens = tokens + self._kept(layout.join(mixed))
        tokens = tokens + self._kept(self.mlp(self.norm2(tokens)))
        return tokens.view_as(cells)

    def _kept(self, branch: Tensor) -> Tensor:
        """Stochastic depth: a sample loses the whole branch, or keeps it scaled so that the expectation stays."""
        if not self.training or self.drop_path == 0:
            return branch
        share = 1 - self.drop_path
        kept = kept_rows(len(branch), share).to(branch.device, non_blocking=True)
        return branch * kept.view(-1, 1, 1) / share


def biased_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Softmax(query key^T / sqrt(d) + bias) value, without keeping the n x n attention of all windows.

    Args:
        query, key, value: (windows, heads, n, d).
        bias: (heads, n, n) float32, the same for all windows.
    """
    if bias.requires_grad and torch.is_grad_enabled() and bias.device.type == "cpu":
        return _TrainedBias.apply(query, key, value, bias)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype)[None])


class _TrainedBias(torch.autograd.Function):
    """PyTorch's fused attention on CPU has no gradient for its bias; here a few windows at a time are recomputed.

    With P the attention, O = P V and G the gradient of O (FlashAttention, arXiv:2205.14135, appendix B.2):
    dV = P^T G, dS = P * (G V^T - rowsum(G * O)), dQ = dS K, dK = dS^T Q, and the bias gets the sum of dS over windows.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:  # type: ignore[override]
        mask = bias.detach().to(query.dtype)[None]
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        ctx.save_for_backward(query, key, value, bias, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        query, key, value, bias, out = ctx.saved_tensors
        grads = [torch.empty_like(tensor) for tensor in (query, key, value)]
        total = torch.zeros_like(bias)
        step = max(1, RECOMPUTED_LOGITS // bias.numel())
        with torch.autocast("cpu", enabled=False):
            for start in range(0, len(query), step):
                part = slice(start, start + step)
                inputs = (tensor[part].to(bias.dtype) for tensor in (query, key, value, out, grad))
                *parts, logits = _recomputed(*inputs, bias=bias)
                for whole, found in zip(grads, parts, strict=True):
                    whole[part] = found
                total += logits.sum(0)
        return *grads, total


def _recomputed(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, grad: Tensor, *, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and logits of a few windows; see `_TrainedBias`."""
    scale = query.shape[-1] ** -0.5
    query = query * scale
    attention = (query @ key.transpose(-2, -1)).add_(bias).softmax(-1)
    logits = (grad @ value.transpose(-2, -1)).sub_((grad * out).sum(-1, keepdim=True)).mul_(attention)
    return (logits @ key).mul_(scale), logits.transpose(-2, -1) @ query, attention.transpose(-2, -1) @ grad, logits
