"""Files of the SMIT and SwinUNETR families arrive in the right encoder with the switches they were trained with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nnssl.config import to_dict
from nnssl.encoders import ENCODERS, build_encoder
from nnssl.encoders.base import Encoder, Features
from nnssl.weights.encoder_file import read_weights
from nnssl.weights.identify import identify
from nnssl.weights.load import LoadReport, load_weights
from tests.rules import golden_error, normal
from tests.weights.toy_files import monai_names, prefixed, swin_tensors

SIZE = (24, (1, 1, 2, 1), (2, 2, 4, 8), 4)
HEAD = {"mlp.0.weight": torch.ones(2), "last_layer.weight_g": torch.ones(2, 1)}
STUDENT_HEADS = {
    "decoder1.weight": torch.ones(2),
    "norm.weight": torch.ones(2),
    **prefixed(HEAD, "head_group."),
    **prefixed(HEAD, "head_cls."),
}
SEGMENTOR = {
    "encoder1.layer.conv1.conv.weight": torch.ones(2),
    "encoder10.layer.conv1.conv.weight": torch.ones(2),
    "decoder5.transp_conv.conv.weight": torch.ones(2),
    "out.conv.conv.bias": torch.ones(2),
}
SSL_HEADS = {name: torch.ones(2) for name in ("norm.weight", "convTrans3d.weight", "rotation_head.bias")}
DAE_EXTRAS = {
    "encoder.mask_token": torch.ones(1, 24),
    "encoder.norm.weight": torch.ones(2),
    "out.conv.conv.bias": torch.ones(1),
}


@pytest.fixture(scope="module")
def smit() -> dict[str, Tensor]:
    return swin_tensors(*SIZE, qkv_bias=False)


@pytest.fixture(scope="module")
def biased() -> dict[str, Tensor]:
    return swin_tensors(*SIZE, qkv_bias=True)


def _without_mask(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name != "mask_token"}


SMIT_FILES: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "pre_train_weight.pt": lambda state: prefixed(_without_mask(state), "module."),
    "pre_train_model.pt": lambda state: {"epoch": 1, "state_dict": {**state, **STUDENT_HEADS}, "optimizer": {"a": 1}},
    "HeartSubSeg pretraining": lambda state: {
        "student": prefixed(_without_mask(state), "module.backbone.transformer."),
        "teacher": prefixed({name: 2 * tensor for name, tensor in state.items()}, "backbone.transformer."),
    },
    "HeartSubSeg fine-tuned": lambda state: {
        "epoch": 3,
        "best_acc": 0.7,
        "state_dict": {**prefixed(_without_mask(state), "transformer."), **SEGMENTOR},
    },
    "SMIT fine-tuned": lambda state: {**prefixed(_without_mask(state), "transformer."), **SEGMENTOR},
}
MONAI_FILES: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "model_swinvit.pt": lambda state: {
        "state_dict": prefixed({**monai_names(state, mlp="fc"), **SSL_HEADS}, "module.")
    },
    "its pretraining": lambda state: {
        "global_step": 7,
        "state_dict": {**prefixed(monai_names(state), "module.swinViT."), **prefixed(SSL_HEADS, "module.")},
        "optimizer": {},
    },
    "an older pretraining": lambda state: {**prefixed(monai_names(state), "swin_vit."), **SSL_HEADS},
    "fine-tuned": lambda state: {**prefixed(monai_names(state), "swinViT."), **SEGMENTOR},
    "ssl_pretrained_weights.pth": lambda state: {
        "model": {**prefixed(monai_names(state, stage="layers{}.0.0."), "encoder."), **DAE_EXTRAS, **SEGMENTOR}
    },
}


def _saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def _loaded(path: Path) -> tuple[Encoder, LoadReport]:
    weights = read_weights(path)
    encoder = identify(weights).build().eval()
    return encoder, load_weights(encoder, weights)


def _shape_of(encoder: Encoder) -> dict[str, Any]:
    return to_dict(ENCODERS[encoder.spec.name]) | encoder.spec.options


def _features(encoder: Encoder) -> Features:
    with torch.inference_mode():
        return encoder(torch.from_numpy(normal("input", (1, 1, 32, 32, 32))))


def _direct(tensors: dict[str, Tensor], **options: Any) -> Encoder:
    """An encoder with the tensors put in by name, without any reader."""
    width, depths, heads, window = SIZE
    sizes = {"width": width, "depths": list(depths), "heads": list(heads), "window": window}
    encoder = build_encoder("swin_tiny", options=sizes | options).eval()
    state = {name: tensor for name, tensor in tensors.items() if not name.endswith("_index")}
    own = encoder.state_dict()
    encoder.load_state_dict({name: state.get(name, torch.zeros(())).expand_as(own[name]) for name in own})
    return encoder


@pytest.mark.parametrize("name", SMIT_FILES)
def test_a_smit_file_gives_the_features_of_its_tensors(name: str, smit: dict[str, Tensor], tmp_path: Path) -> None:
    encoder, report = _loaded(_saved(tmp_path / "a.txt", SMIT_FILES[name](smit)))
    assert report.loaded == report.total and not report.unexpected
    expected = _features(_direct(smit, window_reverse="legacy"))
    found = _features(encoder)
    assert all(torch.equal(a, b) for a, b in zip(found.maps, expected.maps, strict=True))
    shape = _shape_of(encoder)
    assert (shape["window_reverse"], shape["merge_order"], shape["taps"]) == ("legacy", "smit", "post_block")
    assert shape["clamp_window"] is False and "window_reverse legacy" in report.summary()


@pytest.mark.parametrize("name", MONAI_FILES)
def test_a_swinunetr_file_gives_the_features_of_its_tensors(
    name: str, biased: dict[str, Tensor], tmp_path: Path
) -> None:
    encoder, report = _loaded(_saved(tmp_path / "a.pth", MONAI_FILES[name](biased)))
    assert report.loaded == report.total and not report.unexpected
    assert encoder.spec.name == "swin_unetr" and encoder.spec.options["merge_order"] == "monai_legacy"
    switches = {"merge_order": "monai_legacy", "taps": "pre_block", "clamp_window": True, "qkv_bias": True}
    expected = _features(_direct({**biased, "mask_token": torch.zeros(1)}, patch_norm=False, **switches))
    assert all(torch.equal(a, b) for a, b in zip(_features(encoder).maps, expected.maps, strict=True))


def test_a_published_smit_file_gives_the_golden_output(golden: Callable[[str], Any], tmp_path: Path) -> None:
    stored = golden("g06_smit_swin.npz")
    tensors = swin_tensors(24, (2, 2, 4, 2), (2, 2, 4, 8), 4, qkv_bias=False)
    encoder, _ = _loaded(_saved(tmp_path / "a", {"student": prefixed(tensors, "module.backbone.transformer.")}))
    with torch.inference_mode():
        features = encoder(torch.from_numpy(normal("input", (2, 1, 32, 32, 32))))
    assert golden_error(stored, "32x32x32.bottleneck", features.maps[4].flatten(2).transpose(1, 2).numpy()) < 3e-5
    for stage in range(4):
        assert golden_error(stored, f"32x32x32.map{stage}", features.maps[stage].numpy()) < 3e-5


def test_a_published_swinunetr_file_gives_the_golden_output(golden: Callable[[str], Any], tmp_path: Path) -> None:
    """Names and shapes are those of the listed file: window 7, qkv bias, no patch norm."""
    stored, keys = golden("g06_monai_swin.npz"), golden("keys_monai_swin_w7.txt")
    depths = [keys.count(f"layers{stage}.0.blocks.") // 14 for stage in range(1, 5)]
    tensors = monai_names(swin_tensors(24, depths, (2, 2, 4, 8), 7, qkv_bias=True))
    listed = dict(line.split("\t")[:2] for line in keys.strip().splitlines())
    assert {name: str(tuple(tensor.shape)) for name, tensor in tensors.items()} == listed
    encoder, _ = _loaded(_saved(tmp_path / "a", {"state_dict": prefixed(tensors, "module.")}))
    with torch.inference_mode():
        maps = encoder(torch.from_numpy(normal("input", (1, 1, 64, 64, 64)))).maps
    for tap in range(5):
        assert golden_error(stored, f"w7.64x64x64.monai_legacy.tap{tap}_plainnorm", maps[tap].numpy()) < 3e-5


@pytest.mark.parametrize(("downsample", "order"), [("merging", "monai15"), ("mergingv2", "v2")])
def test_a_file_of_todays_monai_gives_its_features_once_that_is_said(
    downsample: str, order: str, tmp_path: Path
) -> None:
    nets = pytest.importorskip("monai.networks.nets")
    sizes = {"depths": (1, 1, 2, 1), "num_heads": (2, 2, 4, 8), "feature_size": 24, "window_size": 4}
    network = nets.SwinUNETR(in_channels=2, out_channels=3, downsample=downsample, **sizes).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in network.swinViT.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    weights = read_weights(_saved(tmp_path / "a", network.state_dict()), {"merge_order": order})
    encoder = identify(weights).build().eval()
    load_weights(encoder, weights)
    volume = torch.from_numpy(normal("input", (1, 2, 64, 32, 96)))
    with torch.inference_mode():
        pairs = list(zip(encoder(volume).maps, network.swinViT(volume), strict=True))
    assert all(torch.allclose(found, expected, atol=1e-5) for found, expected in pairs)


def test_the_user_can_say_which_monai_trained_the_file(biased: dict[str, Tensor], tmp_path: Path) -> None:
    path = _saved(tmp_path / "a.pth", MONAI_FILES["fine-tuned"](biased))
    weights = read_weights(path, options={"merge_order": "monai15"})
    encoder = identify(weights).build()
    assert "merge_order" not in encoder.spec.options  # monai15 is what the preset says
    assert "as asked: merge_order monai15" in load_weights(encoder, weights).summary()
    with pytest.raises(ValueError, match="trained with merge_order monai_legacy, but swin_unetr was built with"):
        load_weights(encoder, read_weights(path))


def test_deep_variants_with_qkv_bias_get_crops_of_128(biased: dict[str, Tensor], tmp_path: Path) -> None:
    deep = swin_tensors(24, (1, 1, 3, 1), (2, 2, 4, 8), 4, qkv_bias=True)
    assert identify(read_weights(_saved(tmp_path / "a", deep))).native_crop == (128, 128, 128)
    assert identify(read_weights(_saved(tmp_path / "b", biased))).native_crop != (128, 128, 128)


def test_what_was_left_out_is_counted(smit: dict[str, Tensor], tmp_path: Path) -> None:
    summary = _loaded(_saved(tmp_path / "a", SMIT_FILES["SMIT fine-tuned"](smit)))[1].summary()
    assert "prefix 'transformer.' removed" in summary and "left out 4 tensors of decoder5, encoder1, " in summary
    assert "5 relative_position_index buffers are equal to ours" in summary
    assert "mask_token is not in the file and is zero" in summary


def test_the_student_is_taken_as_in_heartsubseg(smit: dict[str, Tensor], tmp_path: Path) -> None:
    notes = read_weights(_saved(tmp_path / "a", SMIT_FILES["HeartSubSeg pretraining"](smit))).notes
    assert notes[0] == "took 'student', left out 'teacher'"


def test_another_order_of_cells_in_a_window_is_refused(smit: dict[str, Tensor], tmp_path: Path) -> None:
    name = "layers.2.blocks.1.attn.relative_position_index"
    with pytest.raises(ValueError, match=f"{name} orders the cells of a window in another way"):
        read_weights(_saved(tmp_path / "a", {**smit, name: smit[name].T}))


def test_swinunetr_v2_is_refused(biased: dict[str, Tensor], tmp_path: Path) -> None:
    tensors = {**monai_names(biased), "layers1c.0.conv1.conv.weight": torch.ones(2)}
    with pytest.raises(ValueError, match="SwinUNETR-V2"):
        read_weights(_saved(tmp_path / "a", prefixed(tensors, "swinViT.")))


def test_tensors_that_our_swin_does_not_have_are_refused(smit: dict[str, Tensor], tmp_path: Path) -> None:
    weights = read_weights(_saved(tmp_path / "a", {**smit, "absolute_pos_embed": torch.ones(1, 24)}))
    with pytest.raises(ValueError, match=r"1 unexpected \(absolute_pos_embed\)"):
        load_weights(identify(weights).build(), weights)


def test_another_size_is_named(smit: dict[str, Tensor], tmp_path: Path) -> None:
    weights = read_weights(_saved(tmp_path / "a", smit))
    asked = build_encoder("swin_tiny", options={"window_reverse": "legacy"})
    with pytest.raises(
        ValueError, match=r"hold a Swin \(width 24, depths \[1, 1, 2, 1\].*asked for swin_tiny \(depths"
    ):
        load_weights(asked, weights)
    with pytest.raises(ValueError, match="hold a Swin; asked for vit_tiny_16: use -e"):
        load_weights(build_encoder("vit_tiny_16", native_crop=(32, 32, 32)), weights)
