"""Exported encoders give the same features to nnU-Net's reader, to MONAI, and to ourselves again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnssl.encoders import build_encoder
from nnssl.encoders.base import Encoder
from nnssl.weights.encoder_file import read_weights, save_encoder
from nnssl.weights.export import export_encoder, nnunet_checkpoint
from nnssl.weights.fingerprint import fingerprint
from nnssl.weights.header import EncoderHeader, record_cases
from nnssl.weights.identify import identify
from nnssl.weights.load import load_weights
from tests.weights.nnunet_reader import fine_tuning_network, strings

ENCODERS: dict[str, tuple[str, tuple[int, int, int], dict[str, Any]]] = {
    "vit": ("vit_tiny_8", (32, 24, 40), {}),
    "swin": ("swin_tiny", (64, 64, 64), {"window_reverse": "legacy"}),
    "primus": ("primus_s", (32, 32, 32), {"dim": 24, "depth": 4, "heads": 2, "axis_order": "hwd"}),
    "resenc": ("resenc_l", (64, 64, 64), {"widths": [4, 8, 8, 8, 8], "depths": [1, 1, 2, 1, 1]}),
}
MONAI_LIKE = {"taps": "pre_block", "clamp_window": True}


def built(name: str, crop: tuple[int, int, int], options: dict[str, Any]) -> Encoder:
    """An encoder whose norms, biases and positions are not at their trivial start."""
    torch.manual_seed(0)
    encoder = build_encoder(name, native_crop=crop, options=options).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return encoder


@pytest.fixture(params=ENCODERS)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    if request.param in ("primus", "resenc"):
        pytest.importorskip("dynamic_network_architectures")
    return built(*ENCODERS[request.param])


def header_of(encoder: Encoder) -> EncoderHeader:
    spec = encoder.spec
    return EncoderHeader(
        spec.name,
        spec.native_crop,
        spec.intensity,
        task="threedino",
        steps=7,
        encoder_options=spec.options,
        data=record_cases([("Dataset077_SecretStudy", "PatientMueller_01")]),
    )


def volume(encoder: Encoder, channels: int = 1) -> Tensor:
    """Stored intensities (1, C, ...) on a crop that is neither a cube nor the native one."""
    side = max(encoder.spec.crop_multiple, 32)
    return torch.rand(1, channels, side, 2 * side, side, generator=torch.Generator().manual_seed(1))


def assert_equal_features(one: Encoder, other: Encoder, scan: Tensor) -> None:
    with torch.no_grad():
        first, second = one(scan), other(scan)
    for a, b in zip([*first.maps, first.summary], [*second.maps, second.summary], strict=True):
        assert a.std() > 1e-3 and (a - b).abs().max() <= 1e-6 * max(1.0, float(a.abs().max()))


def test_nnunets_reader_gets_the_same_features(encoder: Encoder, tmp_path: Path) -> None:
    usage = export_encoder(tmp_path / "x.pth", encoder, header_of(encoder), target="nnunet")
    network: Any = fine_tuning_network(tmp_path / "x.pth", 1, 3)
    assert "nnUNetv2_preprocess_like_nnssl" in usage
    assert_equal_features(encoder, network.segmentor.encoder, volume(encoder))
    assert all(parameter.requires_grad for parameter in network.body.parameters() if parameter.ndim > 3)


def test_two_equal_channels_give_nnunets_reader_the_features_of_one(encoder: Encoder, tmp_path: Path) -> None:
    export_encoder(tmp_path / "x.pth", encoder, header_of(encoder), target="nnunet")
    network: Any = fine_tuning_network(tmp_path / "x.pth", 2, 3)
    scan = volume(encoder)
    with torch.no_grad():
        one, two = encoder(scan), network.segmentor.encoder(scan.repeat(1, 2, 1, 1, 1))
    assert torch.allclose(one.summary, two.summary, atol=1e-4)


def test_the_network_takes_z_scores_and_gives_logits(tmp_path: Path) -> None:
    encoder = built(*ENCODERS["vit"])
    export_encoder(tmp_path / "x.pth", encoder, header_of(encoder), target="nnunet")
    network: Any = fine_tuning_network(tmp_path / "x.pth", 1, 3)
    seen: list[Tensor] = []
    network.segmentor.encoder.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    ends = torch.tensor([-9.0, -1.0, 1.5, 4.0, 9.0])  # below, at, between, at, above the ends -1 and 4
    for end in ends:
        with torch.no_grad():
            assert network(torch.full((1, 1, 32, 16, 16), float(end))).shape == (1, 3, 32, 16, 16)
    assert torch.allclose(
        torch.stack([one.float().mean() for one in seen]), torch.tensor([-1.0, -1, 0, 1, 1]), atol=1e-2
    )


def test_nnunet_itself_builds_the_network() -> None:
    plans = pytest.importorskip("nnunetv2.utilities.get_network_from_plans")
    encoder = built(*ENCODERS["swin"])
    architecture = nnunet_checkpoint(encoder, header_of(encoder))["nnssl_adaptation_plan"]["architecture_plans"]
    network = plans.get_network_from_plans(
        architecture["arch_class_name"],
        architecture["arch_kwargs"],
        architecture["arch_kwargs_requiring_import"],
        1,
        4,
        allow_init=True,
        deep_supervision=False,
    )
    assert network.get_submodule(network.keys_to_in_proj[0]).weight.shape == (24, 1, 2, 2, 2)


def test_a_header_that_contradicts_the_plan_is_refused(tmp_path: Path) -> None:
    encoder = built(*ENCODERS["vit"])
    with pytest.raises(ValueError, match="the header says 'vit_tiny_8' of native crop"):
        nnunet_checkpoint(encoder, replace(header_of(encoder), native_crop=(8, 8, 8)))
    content = nnunet_checkpoint(encoder, header_of(encoder))
    content["nnssl_adaptation_plan"]["architecture_plans"]["arch_kwargs"]["native_crop"] = [32, 24, 48]
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"its header describes 'vit_tiny_8' of crop \(32, 24, 40\)"):
        read_weights(tmp_path / "x.pth")


def test_no_case_name_travels_with_an_exported_file(tmp_path: Path) -> None:
    encoder = built(*ENCODERS["vit"])
    export_encoder(tmp_path / "x.pth", encoder, header_of(encoder), target="nnunet")
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    content.pop("network_weights")
    assert not any("Mueller" in text or "SecretStudy" in text for text in strings(content))
    assert b"Mueller" not in (tmp_path / "x.pth").read_bytes()


def test_our_own_file_survives_the_way_to_nnunet_and_back(encoder: Encoder, tmp_path: Path) -> None:
    header = header_of(encoder)
    save_encoder(tmp_path / "ours", encoder, header)
    first = identify(read_weights(tmp_path / "ours")).build().eval()
    load_weights(first, read_weights(tmp_path / "ours"))
    export_encoder(tmp_path / "x.pth", first, header, target="nnunet")
    weights = read_weights(tmp_path / "x.pth")
    assert (weights.format_name, weights.header) == ("nnunet", header)
    found = identify(weights)
    back = found.build().eval()
    report = load_weights(back, weights)
    assert (found.native_crop, found.options) == (encoder.spec.native_crop, encoder.spec.options)
    assert back.spec == encoder.spec and not report.missing and not report.unexpected
    assert_equal_features(encoder, back, volume(encoder))
    assert fingerprint(back, torch.device("cpu")).hash == fingerprint(encoder, torch.device("cpu")).hash


@pytest.mark.parametrize("order", ["smit", "monai15", "v2"])
@pytest.mark.parametrize("biased", [True, False])
def test_monai_loads_an_exported_swin_strictly_and_agrees(order: str, biased: bool, tmp_path: Path) -> None:
    nets = pytest.importorskip("monai.networks.nets")
    options = {**MONAI_LIKE, "merge_order": order, "qkv_bias": biased, "patch_norm": biased}
    encoder = built("swin_tiny", (64, 64, 64), options)
    usage = export_encoder(tmp_path / "x.pt", encoder, header_of(encoder), target="monai")
    network = nets.SwinUNETR(
        in_channels=1,
        out_channels=2,
        num_heads=(2, 2, 4, 8),
        window_size=4,
        feature_size=24,
        patch_norm=biased,
        downsample="mergingv2" if order == "v2" else "merging",
    ).swinViT.eval()
    network.load_state_dict(torch.load(tmp_path / "x.pt", weights_only=True))
    scan = volume(encoder)
    with torch.no_grad():
        maps, wanted = encoder(scan).maps, network(scan, normalize=True)
    assert all((one - other).abs().max() < 2e-5 for one, other in zip(maps, wanted, strict=True))
    assert f"downsample={'mergingv2' if order == 'v2' else 'merging'!r}" in usage
    said = usage.partition("nnssl reads it with --set ")[2]
    weights = read_weights(tmp_path / "x.pt", dict([said.split("=")]))
    back = identify(weights).build().eval()
    load_weights(back, weights)
    with torch.no_grad():
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(maps, back(scan).maps, strict=True))


def test_a_swin_that_pads_its_windows_comes_back_from_monai_as_told(tmp_path: Path) -> None:
    encoder = built("swin_tiny", (96, 96, 96), {**MONAI_LIKE, "clamp_window": False})
    usage = export_encoder(tmp_path / "x.pt", encoder, header_of(encoder), target="monai")
    assert usage.endswith("--set merge_order=monai15 clamp_window=false")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({**MONAI_LIKE, "window_reverse": "legacy"}, "SMIT's permuted order"),
        ({**MONAI_LIKE, "taps": "post_block"}, "taken after the blocks"),
        ({**MONAI_LIKE, "merge_order": "monai_legacy"}, "read two cells twice"),
        (
            {**MONAI_LIKE, "clamp_window": False},
            "the deepest grid has 4 cells a side, where MONAI shrinks a window of 4",
        ),
    ],
)
def test_a_swin_that_monai_would_compute_otherwise_is_refused(
    options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    encoder = built("swin_tiny", (64, 64, 64), options)
    with pytest.raises(ValueError, match=reason):
        export_encoder(tmp_path / "x.pt", encoder, header_of(encoder), target="monai")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("family", "reason"), [("vit", "no layer scale"), ("primus", "rotary"), ("resenc", "shortcut")]
)
def test_other_families_have_no_counterpart_in_monai(family: str, reason: str, tmp_path: Path) -> None:
    if family != "vit":
        pytest.importorskip("dynamic_network_architectures")
    encoder = built(*ENCODERS[family])
    with pytest.raises(ValueError, match=reason):
        export_encoder(tmp_path / "x.pt", encoder, header_of(encoder), target="monai")


def test_an_unknown_format_lists_the_known_ones(tmp_path: Path) -> None:
    encoder = built(*ENCODERS["vit"])
    with pytest.raises(ValueError, match="known formats are nnssl, monai, nnunet"):
        export_encoder(tmp_path / "x", encoder, header_of(encoder), target="onnx")


def test_the_fingerprint_tells_apart_what_shapes_do_not() -> None:
    cpu = torch.device("cpu")
    plain = built("swin_tiny", (64, 64, 64), {})
    others = [
        built("swin_tiny", (64, 64, 64), {"window_reverse": "legacy"}),
        built("swin_tiny", (64, 64, 64), MONAI_LIKE),
    ]
    found = [fingerprint(one, cpu) for one in (plain, *others)]
    assert len({one.hash for one in found}) == 3
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert fingerprint(plain, cpu).hash == found[0].hash
    finally:
        torch.set_num_threads(threads)
    assert found[0].maps[0].shape == (24, 32, 48, 16)


def test_the_fingerprint_refuses_weights_that_overflow() -> None:
    encoder = built(*ENCODERS["vit"])
    nn.init.constant_(encoder.get_parameter("blocks.3.mlp.fc1.weight"), float("inf"))
    with pytest.raises(ValueError, match="gives NaN or infinity for an ordinary volume"):
        fingerprint(encoder, torch.device("cpu"))
