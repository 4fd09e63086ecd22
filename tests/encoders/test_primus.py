"""Primus agrees with dynamic-network-architectures in both axis orders, on cubes and elsewhere."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nnssl.encoders import build_encoder, encoder_spec
from nnssl.encoders.primus import Primus

dna = pytest.importorskip("dynamic_network_architectures.architectures.primus")

TINY = {"dim": 24, "depth": 3, "heads": 2}
PLAIN = {"layer_scale": 0.0, "attention_norm": False}  # as the class Primus is without arguments
NATIVE = (24, 24, 24)


def tiny(**options: Any) -> Primus:
    """Width 24, three blocks, native grid 3x3x3, positions large enough to matter."""
    torch.manual_seed(0)
    encoder = build_encoder("primus_s", native_crop=NATIVE, options={**TINY, **options}).eval()
    assert isinstance(encoder, Primus)
    with torch.no_grad():
        encoder.eva.pos_embed.normal_()
    return encoder


def peer(encoder: Primus, crop: tuple[int, int, int] = NATIVE, **settings: Any) -> Any:
    """The network of dynamic-network-architectures with the same weights, up to the decoder."""
    settings = settings or {"init_values": 0.1, "scale_attn_inner": True}
    network = dna.Primus(1, 24, (8, 8, 8), 2, 3, 2, input_shape=crop, **settings)
    state = encoder.state_dict()
    if crop != NATIVE:
        state.pop("eva.pos_embed")
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected
    assert [name for name in missing if not name.startswith("up_projection")] == (
        [] if crop == NATIVE else ["eva.pos_embed"]
    )
    return network.eval()


def volume(*crop: int) -> Tensor:
    return torch.rand(2, 1, *crop, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "width", "depth", "heads", "letter"),
    [
        ("primus_s", 396, 12, 6, "S"),
        ("primus_b", 792, 12, 12, "B"),
        ("primus_m", 864, 16, 12, "M"),
        ("primus_l", 1056, 24, 16, "L"),
    ],
)
def test_published_sizes_have_the_names_and_shapes_of_their_class(
    name: str, width: int, depth: int, heads: int, letter: str
) -> None:
    spec = encoder_spec(name)
    assert (spec.channels, spec.strides, spec.depth, spec.family) == ((width,), (8,), depth, "primus")
    with torch.device("meta"):
        encoder = build_encoder(name)
        network = getattr(dna, f"Primus{letter}")(1, 2, (8, 8, 8), (160, 160, 160))
    theirs = {name: t.shape for name, t in network.state_dict().items() if not name.startswith("up_projection")}
    assert {name: tensor.shape for name, tensor in encoder.state_dict().items()} == theirs
    assert theirs["eva.pos_embed"] == (1, 8000, width)
    assert network.eva.blocks[0].attn.num_heads == heads


@pytest.mark.parametrize(("options", "settings"), [({}, {}), (PLAIN, {"init_values": None, "scale_attn_inner": False})])
def test_order_whd_gives_the_features_of_the_published_class(options: dict[str, Any], settings: dict[str, Any]) -> None:
    encoder, scan = tiny(**options), volume(*NATIVE)
    network = peer(encoder, **settings)
    with torch.no_grad():
        tokens = network.eva(network.down_projection(scan).flatten(2).transpose(1, 2))[0]
        features = encoder(scan)
    assert torch.equal(features.maps[0], tokens.transpose(1, 2).unflatten(2, (3, 3, 3)))
    assert torch.equal(features.tokens["patch"], tokens)
    assert torch.allclose(features.summary, tokens.mean(1))


def _flattened_hwd(encoder: Primus, scan: Tensor) -> Tensor:
    """Tokens flattened as in EvaMAE, `b c w h d -> b (h w d) c`, through the published transformer, and back."""
    network = peer(encoder)
    patches = network.down_projection(scan)
    _, _, w, h, d = patches.shape
    tokens = patches.permute(0, 3, 2, 4, 1).reshape(len(scan), h * w * d, -1)
    return network.eva(tokens)[0].reshape(len(scan), h, w, d, -1).permute(0, 4, 2, 1, 3)


def test_order_hwd_gives_the_features_of_tokens_flattened_in_the_other_order() -> None:
    encoder, scan = tiny(axis_order="hwd"), volume(*NATIVE)
    with torch.no_grad():
        wanted, features = _flattened_hwd(encoder, scan), encoder(scan)
        plain = tiny()(scan)
    assert (features.maps[0] - wanted).abs().max() < 1e-5
    cosine = functional.cosine_similarity(features.maps[0].flatten(1), plain.maps[0].flatten(1)).mean()
    assert cosine < 0.99, "the two orders must differ, or the test shows nothing"


def test_order_hwd_is_order_whd_on_a_scan_with_swapped_axes() -> None:
    """With a patch kernel that is symmetric in X and Y, swapping axes of scan and maps turns one into the other."""
    swapped, plain, scan = tiny(axis_order="hwd"), tiny(), volume(24, 16, 32)
    with torch.no_grad():
        for encoder in (swapped, plain):
            kernel = encoder.down_projection.proj.weight
            kernel.copy_((kernel + kernel.transpose(2, 3)) / 2)
        features, mirrored = swapped(scan), plain(scan.transpose(2, 3))
    assert (features.maps[0] - mirrored.maps[0].transpose(2, 3)).abs().max() < 1e-5


def test_another_grid_is_what_fine_tuning_makes_of_it() -> None:
    """nnU-Net resamples the table (trilinear) and counts rotary positions on the new grid."""
    encoder, crop = tiny(), (16, 32, 24)
    network = peer(encoder, crop)
    with torch.no_grad():
        table = encoder.eva.pos_embed.transpose(1, 2).unflatten(2, (3, 3, 3))
        resized = functional.interpolate(table, size=(2, 4, 3), mode="trilinear")
        network.eva.pos_embed.copy_(resized.flatten(2).transpose(1, 2))
        tokens = network.eva(network.down_projection(volume(*crop)).flatten(2).transpose(1, 2))[0]
        features = encoder(volume(*crop))
    assert (features.tokens["patch"] - tokens).abs().max() < 1e-5


def test_layer_maps_are_the_features_of_shorter_networks() -> None:
    encoder, scan = tiny(), volume(16, 24, 8)
    with torch.no_grad():
        first, last = encoder.layer_maps(scan, [-1, 0])
        raw = encoder.layer_maps(scan, [0], norm=False)[0]
        whole = encoder(scan)
        del encoder.eva.blocks[1:]
        encoder.depth = 1
        short = encoder(scan)
    assert torch.equal(last, whole.maps[0]) and torch.equal(first, short.maps[0])
    assert torch.allclose(encoder.eva.norm(raw.movedim(1, -1)), first.movedim(1, -1), atol=1e-6)


def test_a_hidden_patch_cannot_be_seen() -> None:
    encoder, scan = tiny(axis_order="hwd"), volume(16, 24, 8)
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[:, 4] = True  # raster order on the grid 2x3x1: cell (1, 1, 0)
    changed = scan.clone()
    changed[:, :, 8:16, 8:16] = 7
    with torch.no_grad():
        assert torch.equal(encoder(scan, mask).summary, encoder(changed, mask).summary)
        assert not torch.equal(encoder(scan).summary, encoder(changed).summary)
    with pytest.raises(ValueError, match=r"expected bool \(2, 6\), one entry per token of 8 voxels"):
        encoder(scan, mask[:, :5])


def test_wrong_settings_and_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="axis_order 'dhw': known are whd, hwd"):
        encoder_spec("primus_s", options={"axis_order": "dhw"})
    with pytest.raises(ValueError, match="each head must have a multiple of 6 channels"):
        encoder_spec("primus_s", options={"dim": 32, "heads": 4})
    with pytest.raises(ValueError, match="every side must be a multiple of 8 voxels"):
        tiny()(volume(20, 16, 16))
    with pytest.raises(ValueError, match="encode one channel at a time"):
        tiny()(torch.rand(1, 2, 16, 16, 16))
    with pytest.raises(ValueError, match="has no block 3; allowed: -3 to 2"):
        tiny().layer_maps(volume(16, 16, 16), [3])


def test_two_channels_enter_together_where_the_option_says_so() -> None:
    encoder = tiny(input_channels=2)
    assert encoder(torch.rand(1, 2, 16, 16, 16)).summary.shape == (1, 24)
    assert encoder.spec.options == {**TINY, "input_channels": 2}
