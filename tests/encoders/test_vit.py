"""The vision transformer against the golden numbers, its sizes, and its promises about shapes, masks and devices."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nnssl.encoders.base import EncoderSpec, to_encoder_range
from nnssl.encoders.vit import VisionTransformer
from nnssl.layers.attention import layer_scale_init
from tests.rules import golden_error, normal, rule_tensor

TOLERANCE = 5e-5


def _vit(native: tuple[int, int, int] = (32, 32, 32), **settings: Any) -> VisionTransformer:
    """A tiny transformer whose LayerScale is 1, so that its blocks matter."""
    torch.manual_seed(0)
    spec = EncoderSpec("vit_test", (32,), (8,), 8, native)
    encoder = VisionTransformer(spec, 3, heads=2, **settings)
    for name, parameter in encoder.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.ones_(parameter)
    return encoder.eval()


def _golden_vit() -> VisionTransformer:
    encoder = VisionTransformer(EncoderSpec("vit_golden", (96,), (16,), 16, (96, 96, 96)), 8, heads=4)
    values = {}
    for name, tensor in encoder.state_dict().items():
        parts = name.split(".")
        published = ".".join(["blocks", str(int(parts[1]) // 2), *parts[1:]]) if parts[0] == "blocks" else name
        values[name] = torch.from_numpy(rule_tensor(published, tuple(tensor.shape)))
    encoder.load_state_dict(values)
    return encoder.eval()


@pytest.fixture(scope="module")
def golden_vit() -> VisionTransformer:
    return _golden_vit()


def _input(*shape: int) -> torch.Tensor:
    return torch.from_numpy(normal("input", shape))


@torch.inference_mode()
def test_outputs_agree_with_golden_numbers(golden: Callable[[str], Any], golden_vit: VisionTransformer) -> None:
    stored = golden("g01_vit3d.npz")
    volume = _input(2, 1, 96, 96, 96)
    tokens = golden_vit.embed(volume)
    prenorm = golden_vit.run_blocks(tokens, 0, 8)
    features = golden_vit(volume)
    assert features.maps[0].shape == (2, 96, 6, 6, 6)
    found = {
        "embed_tokens": tokens,
        "prenorm": prenorm,
        "cls": features.summary,
        "patch_tokens": features.maps[0].flatten(2).transpose(1, 2),
    }
    for name, value in found.items():
        assert golden_error(stored, name, value.numpy()) < TOLERANCE, name


@torch.inference_mode()
def test_masked_outputs_agree_with_golden_numbers(golden: Callable[[str], Any], golden_vit: VisionTransformer) -> None:
    stored = golden("g01_vit3d.npz")
    volume, mask = _input(2, 1, 96, 96, 96), torch.from_numpy(stored["mask"])
    features = golden_vit(volume, mask)
    assert golden_error(stored, "embed_tokens_masked", golden_vit.embed(volume, mask).numpy()) < TOLERANCE
    assert golden_error(stored, "masked.cls", features.summary.numpy()) < TOLERANCE
    patches = features.maps[0].flatten(2).transpose(1, 2)
    assert golden_error(stored, "masked.patch_tokens", patches.numpy()) < TOLERANCE


@torch.inference_mode()
def test_intermediate_layers_agree_with_golden_numbers(
    golden: Callable[[str], Any], golden_vit: VisionTransformer
) -> None:
    stored = golden("g01_vit3d.npz")
    volume = _input(2, 1, 96, 96, 96)
    for i, (patches, summary) in enumerate(golden_vit.intermediate(volume, [-4, -3, -2, -1])):
        assert golden_error(stored, f"inter4_norm_{i}.patch", patches.numpy()) < TOLERANCE
        assert golden_error(stored, f"inter4_norm_{i}.cls", summary.numpy()) < TOLERANCE
    listed = [int(index) for index in stored["inter_list.index"]]
    for i, (patches, summary) in enumerate(golden_vit.intermediate(volume, listed, norm=False)):
        maps = patches.transpose(1, 2).reshape(2, 96, 6, 6, 6)
        assert golden_error(stored, f"inter_list_nonorm_reshape_{i}.patch", maps.numpy()) < TOLERANCE
        assert golden_error(stored, f"inter_list_nonorm_{i}.cls", summary.numpy()) < TOLERANCE


@torch.inference_mode()
def test_attention_of_any_block_agrees_with_golden_numbers(
    golden: Callable[[str], Any], golden_vit: VisionTransformer
) -> None:
    stored = golden("g01_vit3d.npz")
    volume = _input(2, 1, 96, 96, 96)
    for name, attention in (("block3", golden_vit.attention(volume, 3)), ("block7", golden_vit.attention(volume))):
        assert golden_error(stored, f"cls_attention.{name}", attention[:, :, 0].numpy()) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("size", [(112, 96, 128), (112, 80, 128), (48, 48, 48)])
def test_other_sizes_agree_with_golden_numbers(
    golden: Callable[[str], Any], golden_vit: VisionTransformer, size: tuple[int, int, int]
) -> None:
    stored = golden("g01_vit3d.npz")
    name = "size" + "x".join(map(str, size))
    features = golden_vit(_input(1, 1, *size))
    assert golden_error(stored, f"{name}.cls", features.summary.numpy()) < TOLERANCE
    if size == (112, 96, 128):
        patches = features.maps[0].flatten(2).transpose(1, 2)
        assert golden_error(stored, f"{name}.patch_tokens", patches.numpy()) < TOLERANCE


@torch.inference_mode()
def test_the_rule_of_every_axis_agrees_with_golden_numbers(
    golden: Callable[[str], Any], golden_vit: VisionTransformer
) -> None:
    stored = golden("g01_vit3d.npz")
    tokens = golden_vit.embed(_input(1, 1, 112, 96, 128), position_rule="scale_factor_every_axis")
    tokens = golden_vit.norm(golden_vit.run_blocks(tokens, 0, 8))
    assert golden_error(stored, "size112x96x128.cls_every_axis", tokens[:, 0].numpy()) < TOLERANCE
    assert golden_error(stored, "size112x96x128.patch_tokens_every_axis", tokens[:, 1:].numpy()) < TOLERANCE


def test_maps_keep_the_axes_of_the_volume() -> None:
    encoder = _vit()
    encoder.pos_embed.data.zero_()
    volume = torch.zeros(1, 1, 16, 24, 32)
    volume[0, 0, 8:16, 16:24, 24:32] = 1.0
    tokens = encoder.embed(volume)[0, 1:].reshape(2, 3, 4, 32)
    changed = (tokens - tokens[0, 0, 0]).abs().sum(-1) > 1e-6
    assert changed.nonzero().tolist() == [[1, 2, 3]]
    assert encoder(volume).maps[0].shape == (1, 32, 2, 3, 4)


def test_a_native_crop_need_not_be_a_cube() -> None:
    encoder = _vit((16, 32, 24))
    assert encoder.native_grid == (2, 4, 3)
    assert encoder.pos_embed.shape == (1, 1 + 24, 32)
    assert torch.equal(encoder.positions((2, 4, 3)), encoder.pos_embed)
    assert encoder(torch.zeros(1, 1, 32, 16, 40)).maps[0].shape == (1, 32, 4, 2, 5)


def test_hidden_patches_do_not_reach_the_output() -> None:
    encoder = _vit()
    mask = torch.zeros(1, 64, dtype=torch.bool)
    mask[0, 5] = True  # x 0, y 1, z 1
    first = torch.randn(1, 1, 32, 32, 32)
    second = first.clone()
    second[:, :, :8, 8:16, 8:16] += 3.0
    assert torch.equal(encoder(first, mask).summary, encoder(second, mask).summary)
    assert not torch.equal(encoder(first).summary, encoder(second).summary)


@pytest.mark.parametrize("mask", [torch.zeros(1, 63, dtype=torch.bool), torch.zeros(1, 64)])
def test_a_mask_that_does_not_fit_is_refused(mask: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="token mask of shape"):
        _vit()(torch.zeros(1, 1, 32, 32, 32), mask)


@pytest.mark.parametrize("shape", [(1, 2, 32, 32, 32), (1, 32, 32, 32)])
def test_a_volume_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"reads volumes \(B, 1, X, Y, Z\)"):
        _vit()(torch.zeros(shape))


def test_a_side_that_is_no_multiple_of_the_patch_names_the_nearest_crop() -> None:
    with pytest.raises(ValueError, match=r"nearest is \(32, 24, 32\)"):
        _vit()(torch.zeros(1, 1, 32, 27, 32))


def test_a_block_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="no block 3; allowed: -3 to 2"):
        _vit().attention(torch.zeros(1, 1, 16, 16, 16), block=3)


def test_intermediate_layers_come_in_ascending_order_and_end_in_the_output() -> None:
    encoder = _vit()
    volume = torch.randn(2, 1, 24, 16, 16)
    features = encoder(volume)
    (first, _), (last, summary) = encoder.intermediate(volume, [-1, 0])
    assert torch.equal(summary, features.summary)
    assert torch.equal(last.transpose(1, 2).reshape(features.maps[0].shape), features.maps[0])
    assert not torch.allclose(first, last)


def test_attention_rows_sum_to_one() -> None:
    attention = _vit().attention(torch.randn(1, 1, 16, 24, 16))
    assert attention.shape == (1, 2, 13, 13)
    torch.testing.assert_close(attention.sum(-1), torch.ones(1, 2, 13))


def test_gradients_pass_through_a_frozen_encoder() -> None:
    encoder = _vit().requires_grad_(False)
    volume = torch.randn(1, 1, 16, 16, 24, requires_grad=True)
    features = encoder(volume)
    (features.maps[0].square().sum() + features.summary.square().sum()).backward()
    assert volume.grad is not None and (volume.grad != 0).float().mean() > 0.99
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_every_parameter_learns_when_patches_are_hidden() -> None:
    encoder = _vit(drop_path=0.3).train()
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[:, ::3] = True
    features = encoder(torch.randn(4, 1, 16, 16, 16), mask)
    (features.maps[0].square().mul(torch.rand(32, 2, 2, 2)).sum() + features.summary[:, 0].sum()).backward()
    without = [name for name, value in encoder.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == []


def test_bfloat16_autocast_stays_close_to_float32() -> None:
    encoder = _vit()
    volume = to_encoder_range(torch.rand(1, 1, 32, 24, 40), (-1.0, 1.0))
    exact = encoder(volume).summary
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse = encoder(volume).summary
    assert coarse.dtype == torch.float32
    assert (coarse - exact).norm() / exact.norm() < 0.02


def test_initialisation_follows_the_published_rules() -> None:
    torch.manual_seed(0)
    encoder = VisionTransformer(EncoderSpec("vit_test", (192,), (8,), 8, (64, 64, 64)), 2, heads=3)
    state = encoder.state_dict()
    assert not state["mask_token"].any()
    assert state["cls_token"].std().item() == pytest.approx(1e-6, rel=0.3)
    assert state["pos_embed"].std().item() == pytest.approx(0.02, rel=0.02)
    assert state["blocks.0.attn.qkv.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    assert not state["blocks.1.mlp.fc2.bias"].any()
    assert (state["blocks.1.ls2.gamma"] == 0.1).all()  # CaiT: shallow
    assert [layer_scale_init(depth) for depth in (18, 19, 24)] == [0.1, 1e-5, 1e-5]
    bound = 1 / 8**1.5  # PyTorch's own rule: uniform within 1 / sqrt(fan in)
    assert 0.95 * bound < state["patch_embed.proj.weight"].abs().max().item() <= bound


def test_stochastic_depth_acts_in_training_only() -> None:
    encoder = _vit(drop_path=0.5)
    volume = torch.randn(4, 1, 16, 16, 16)
    assert torch.equal(encoder(volume).summary, encoder(volume).summary)
    torch.manual_seed(1)
    trained = encoder.train()(volume).summary
    assert not torch.equal(trained, encoder.eval()(volume).summary)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_drop_rate_outside_its_range_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="drop_path"):
        _vit(drop_path=rate)
