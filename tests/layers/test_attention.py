"""Attention, MLP and stochastic depth against PyTorch's own layers and hand-made sums."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nnssl.layers.attention import Block, SelfAttention, add_branch


def _seeded(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        with torch.no_grad():
            parameter.normal_(generator=generator).mul_(0.3)
    return module


def _torch_attention(layer: SelfAttention, dim: int) -> nn.MultiheadAttention:
    peer = nn.MultiheadAttention(dim, layer.heads, batch_first=True)
    state = {"in_proj_weight": layer.qkv.weight, "in_proj_bias": layer.qkv.bias}
    peer.load_state_dict({**state, "out_proj.weight": layer.proj.weight, "out_proj.bias": layer.proj.bias})
    return peer


def test_self_attention_agrees_with_pytorchs_multi_head_attention() -> None:
    layer = _seeded(SelfAttention(24, 3))
    tokens = torch.randn(2, 7, 24)
    mixed, weights = _torch_attention(layer, 24)(tokens, tokens, tokens, average_attn_weights=False)
    torch.testing.assert_close(layer(tokens), mixed, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.weights(tokens), weights, atol=1e-5, rtol=1e-5)


def test_a_block_agrees_with_pytorchs_pre_norm_layer_at_unit_scale() -> None:
    block = _seeded(Block(24, 3))
    peer = nn.TransformerEncoderLayer(
        24, 3, 96, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    peer.self_attn = _torch_attention(block.attn, 24)
    pairs = ((peer.linear1, block.mlp.fc1), (peer.linear2, block.mlp.fc2))
    for theirs, ours in (*pairs, (peer.norm1, block.norm1), (peer.norm2, block.norm2)):
        theirs.load_state_dict(ours.state_dict())
    nn.init.ones_(block.ls1.gamma)
    nn.init.ones_(block.ls2.gamma)
    tokens = torch.randn(2, 5, 24)
    torch.testing.assert_close(block(tokens), peer.train()(tokens), atol=1e-5, rtol=1e-4)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="width 10 cannot be split into 3 heads"):
        SelfAttention(10, 3)


@pytest.mark.parametrize(("batch", "rate", "kept"), [(10, 0.3, 7), (4, 0.3, 2), (3, 0.9, 1), (1, 0.3, 1), (5, 0.5, 2)])
def test_stochastic_depth_adds_the_scaled_branch_to_the_stated_number_of_samples(
    batch: int, rate: float, kept: int
) -> None:
    tokens = torch.zeros(batch, 2, 3)
    changed = add_branch(tokens, torch.ones_like, drop_rate=rate)[:, 0, 0]
    assert int((changed != 0).sum()) == kept
    torch.testing.assert_close(changed[changed != 0], torch.full((kept,), batch / kept))


def test_the_branch_runs_on_the_subset_only() -> None:
    sizes: list[int] = []

    def branch(tokens: Tensor) -> Tensor:
        sizes.append(len(tokens))
        return tokens

    add_branch(torch.zeros(10, 1, 1), branch, drop_rate=0.3)
    assert sizes == [7]


def test_stochastic_depth_is_right_on_average() -> None:
    torch.manual_seed(0)
    tokens, branch = torch.zeros(8, 1, 1), torch.arange(8.0).reshape(8, 1, 1)
    # the branch knows which samples it got through their value
    marked = tokens + branch
    draws = torch.stack([add_branch(marked, lambda chosen: chosen, drop_rate=0.5) - marked for _ in range(4000)])
    standard_error = branch * (1.0 / 4000) ** 0.5  # each draw is 0 or twice the branch
    assert ((draws.mean(0) - branch).abs() <= 5 * standard_error).all()


def test_each_residual_branch_draws_its_own_subset() -> None:
    block = _seeded(Block(8, 2, drop_path=0.5)).train()
    drawn: list[int] = []
    tokens = torch.randn(16, 3, 8)
    hooks = [layer.register_forward_hook(_keep_first(drawn)) for layer in (block.norm1, block.norm2)]
    torch.manual_seed(3)
    for _ in range(20):
        block(tokens)
    for hook in hooks:
        hook.remove()
    assert len(drawn) == 40 and len(set(drawn)) > 30


def _keep_first(drawn: list[int]) -> Callable[..., None]:
    return lambda layer, inputs, output: drawn.append(hash(inputs[0][:, 0, 0].sum().item()))


def test_evaluation_drops_nothing() -> None:
    block = _seeded(Block(8, 2, drop_path=0.9)).eval()
    tokens = torch.randn(6, 3, 8)
    expected = tokens + block.ls1(block.attn(block.norm1(tokens)))
    expected = expected + block.ls2(block.mlp(block.norm2(expected)))
    assert torch.equal(block(tokens), expected)


def test_small_updates_survive_autocast() -> None:
    block = Block(16, 2)  # LayerScale 1e-5: an update far below the spacing of bfloat16
    tokens = torch.randn(1, 4, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        change = block(tokens) - tokens
    assert change.dtype == torch.float32 and change.abs().max() > 0


def test_stochastic_depth_works_under_autocast_and_backward() -> None:
    block = _seeded(Block(16, 2, drop_path=0.4)).train()
    tokens = torch.randn(5, 4, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        block(tokens).sum().backward()
    assert tokens.grad is not None and torch.isfinite(tokens.grad).all() and (tokens.grad != 0).all()


def test_a_block_runs_on_the_meta_device() -> None:
    with torch.device("meta"):
        block = Block(16, 2, drop_path=0.3)
        assert block(torch.empty(4, 9, 16)).shape == (4, 9, 16)
        assert block.attention(torch.empty(4, 9, 16)).shape == (4, 2, 9, 9)
