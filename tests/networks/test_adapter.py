"""The adapter against golden numbers of the reference, and what it refuses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nnssl.encoders import build_encoder
from nnssl.encoders.base import EncoderSpec
from nnssl.encoders.vit import VisionTransformer
from nnssl.networks.adapter import ViTAdapter, default_width
from nnssl.networks.interactions import Layout, to_map, to_tokens
from tests.rules import golden_error, normal, rule_tensor

Golden = Callable[[str], Any]
TAGS = {"c1_same": (2, 1, 48), "c1_interp": (1, 1, 64), "c2_same": (2, 2, 48)}
ORDERS = [("correct", "correct"), ("reference", "compat")]
DIM, DEPTH = 64, 8


def _vit(depth: int = DEPTH, patch: int = 16) -> VisionTransformer:
    return VisionTransformer(EncoderSpec("toy", (DIM,), (patch,), patch, (48, 48, 48), depth=depth), depth, heads=4)


def _reference_key(key: str) -> str:
    """Our parameter name as the reference spells it (its ViT has chunked blocks)."""
    if key.startswith("encoder.blocks."):
        index, rest = key.removeprefix("encoder.blocks.").split(".", 1)
        return f"vit_model.blocks.{int(index) // (DEPTH // 4)}.{index}.{rest}"
    return key.replace("encoder.", "vit_model.", 1) if key.startswith("encoder.") else key


def _golden_adapter(channels: int, order: str) -> ViTAdapter:
    adapter = ViTAdapter(_vit(), channels, width=DIM, offset_order=order, stem_width=8)
    state = adapter.state_dict()
    values = {key: rule_tensor(_reference_key(key), tuple(tensor.shape)) for key, tensor in state.items()}
    adapter.load_state_dict({key: torch.as_tensor(value) for key, value in values.items()})
    return adapter.eval()


def _input(tag: str) -> torch.Tensor:
    batch, channels, side = TAGS[tag]
    return torch.from_numpy(normal("input", (batch, channels, side, side, side)))


@pytest.mark.parametrize("channels", [1, 2])
def test_parameter_names_and_shapes_are_the_published_ones(golden: Golden, channels: int) -> None:
    rows = [line.split("\t") for line in golden(f"keys_vit_adapter_c{channels}.txt").splitlines() if "\t" in line]
    expected = {row[0]: row[1] for row in rows}
    state = ViTAdapter(_vit(), channels, width=DIM, stem_width=8).state_dict()
    assert {_reference_key(key): str(tuple(tensor.shape)) for key, tensor in state.items()} == expected


@pytest.mark.parametrize(("order", "name"), ORDERS)
@pytest.mark.parametrize("tag", TAGS)
def test_pyramid_agrees_with_the_golden_numbers(golden: Golden, tag: str, order: str, name: str) -> None:
    stored = golden("g04_vit_adapter.npz")
    adapter = _golden_adapter(TAGS[tag][1], order)
    with torch.no_grad():
        maps = adapter(_input(tag))
    for level, one in enumerate(maps, start=1):
        assert golden_error(stored, f"{tag}.{name}.f{level}", one.numpy()) < 3e-4


@pytest.mark.parametrize("tag", TAGS)
def test_spatial_prior_agrees_with_the_golden_numbers(golden: Golden, tag: str) -> None:
    stored = golden("g04_vit_adapter.npz")
    with torch.no_grad():
        finest, *coarser = _golden_adapter(TAGS[tag][1], "correct").spm(_input(tag))
    assert golden_error(stored, f"{tag}.prior1", finest.numpy()) < 5e-5
    for level, one in enumerate(coarser, start=2):
        assert golden_error(stored, f"{tag}.prior{level}", to_tokens(one).numpy()) < 5e-5


@pytest.mark.parametrize(("order", "name"), ORDERS)
def test_injector_and_extractor_agree_with_the_golden_numbers(golden: Golden, order: str, name: str) -> None:
    stored = golden("g04_vit_adapter.npz")
    adapter = _golden_adapter(1, order)
    tokens = torch.from_numpy(normal("tokens", (2, 27, DIM)))
    layout = Layout.of((3, 3, 3), order, torch.device("cpu"))
    interaction = adapter.interactions[0]
    with torch.no_grad():
        priors = adapter.spm(_input("c1_same"))[1:]
        features = torch.cat([to_tokens(one) + adapter.level_embed[i] for i, one in enumerate(priors)], dim=1)
        injected = tokens + interaction.injector(tokens, features, layout)
        extracted = interaction.extractor(features, tokens, layout)
        mixed = interaction.extractor.ffn(features, layout.levels)
    assert golden_error(stored, "c1_same.convffn0", mixed.numpy()) < 5e-5
    assert golden_error(stored, f"c1_same.injector0.{name}", injected.numpy()) < 5e-5
    assert golden_error(stored, f"c1_same.extractor0.{name}", extracted.numpy()) < 5e-5


@pytest.mark.parametrize(("name", "strides"), [("vit_tiny_8", (1, 2, 4, 8)), ("vit_tiny_16", (2, 4, 8, 16))])
def test_narrow_pyramid_has_the_announced_channels_and_strides(name: str, strides: tuple[int, ...]) -> None:
    encoder = build_encoder(name)
    assert isinstance(encoder, VisionTransformer)
    with torch.device("meta"):
        adapter = ViTAdapter(encoder.to("meta"), 2, width=default_width(192))
    side = (32, 48, 16)
    maps = adapter(torch.empty(1, 2, *side, device="meta"))
    assert adapter.strides == strides and adapter.channels == (96,) * 4
    for one, stride in zip(maps, strides, strict=True):
        assert one.shape == (1, 96, *(length // stride for length in side))


def test_an_injection_at_one_place_changes_the_pyramid_mostly_there() -> None:
    """A bright cube at one end of a long volume: the finest map changes near it (fails with permuted axes)."""
    torch.manual_seed(0)
    adapter = ViTAdapter(_vit(), 1, width=DIM, stem_width=8).eval()
    volume = torch.zeros(1, 1, 64, 16, 32)
    changed = volume.clone()
    changed[..., 40:56, 4:12, 0:8] = 1
    with torch.no_grad():
        difference = (adapter(changed)[0] - adapter(volume)[0]).abs().mean(1)[0]
    peak = torch.unravel_index(difference.argmax(), difference.shape)
    assert 20 <= peak[0] <= 28 and 2 <= peak[1] <= 6 and 0 <= peak[2] <= 4


def test_one_samples_tokens_as_a_map_have_the_right_gradient_through_batch_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, upstream = torch.randn(1, 2 * 27, 8, generator=generator), torch.randn(1, 8, 3, 3, 3, generator=generator)
    volume = to_map(tokens[:, :27], (3, 3, 3))
    gradients = []
    for layout in (volume, volume + torch.zeros_like(volume), volume.contiguous()):
        leaf = layout.detach().requires_grad_()
        normed = torch.nn.functional.batch_norm(leaf, None, None, training=True)
        gradients.append(torch.autograd.grad(normed, leaf, upstream)[0])
    assert torch.allclose(gradients[0], gradients[2], atol=1e-5)
    assert torch.allclose(gradients[1], gradients[2], atol=1e-5)


def test_a_depth_that_four_stages_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="6 blocks: the depth must be a multiple of 4"):
        ViTAdapter(_vit(depth=6), 1, width=DIM)


def test_a_patch_without_a_pyramid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"patch 4: allowed patches are \(8, 16\)"):
        ViTAdapter(_vit(patch=4), 1, width=DIM)


@pytest.mark.parametrize(("dim", "width"), [(192, 96), (384, 192), (768, 256), (1024, 256), (1536, 256)])
def test_default_width_is_half_the_vit_and_at_most_256(dim: int, width: int) -> None:
    assert default_width(dim) == width
