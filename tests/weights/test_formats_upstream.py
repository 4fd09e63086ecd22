"""Files of MIC-DKFZ's pretraining give the features of the network that wrote them, positions included."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnssl.encoders import build_encoder
from nnssl.encoders.base import Encoder
from nnssl.weights.encoder_file import read_weights
from nnssl.weights.identify import identify
from nnssl.weights.load import LoadReport, load_weights
from tests.rules import normal

primus = pytest.importorskip("dynamic_network_architectures.architectures.primus")
unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")
SIDE = 24  # voxels: a token grid of 3 x 3 x 3


def _random(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return network.eval()


def _plan(architecture: str, **words: Any) -> dict[str, Any]:
    return {
        "architecture_plans": {"arch_class_name": architecture, "arch_kwargs": words or None},
        "pretrain_plan": {"configurations": {"onemmiso": {"spacing": [1, 1, 1], "patch_size": (SIDE,) * 3}}},
        "pretrain_num_input_channels": 1,
        "recommended_downstream_patchsize": (SIDE,) * 3,
        "key_to_encoder": "eva",
    }


def _checkpoint(tensors: dict[str, Tensor], trainer: str, plan: dict[str, Any]) -> dict[str, Any]:
    """The documented keys of a checkpoint of the pretraining."""
    return {
        "network_weights": tensors,
        "optimizer_state": {"state": {}, "param_groups": []},
        "grad_scaler_state": None,
        "logging": {"train_losses": [1.0]},
        "_best_ema": None,
        "current_epoch": 3,
        "init_args": {"plan": {}, "configuration_name": "onemmiso", "fold": "all", "pretrain_json": {}},
        "trainer_name": trainer,
        "nnssl_adaptation_plan": plan,
    }


def _primus_file(path: Path, trainer: str, **words: Any) -> nn.Module:
    """A Primus with what its published sizes have: layer scale and a norm inside attention."""
    words = {"init_values": 0.1, "scale_attn_inner": True} | words
    peer = _random(primus.Primus(1, 24, (8, 8, 8), 2, eva_depth=2, eva_numheads=2, input_shape=(SIDE,) * 3, **words))
    decoder = {"decoder.blocks.0.norm1.weight": torch.ones(24), "eva.rope.periods": torch.ones(4)}
    torch.save(_checkpoint({**peer.state_dict(), **decoder}, trainer, _plan("PrimusS")), path)
    return peer


def _loaded(path: Path, **options: Any) -> tuple[Encoder, LoadReport]:
    weights = read_weights(path, options)
    encoder = identify(weights).build().eval()
    return encoder, load_weights(encoder, weights)


@pytest.mark.parametrize(
    ("trainer", "order"), [("BaseMAETrainer_BS8", "hwd"), ("VoCoEvaTrainer", "hwd"), ("SimMIMEvaTrainer_BS8", "whd")]
)
def test_a_primus_file_gives_the_features_of_its_pretraining(tmp_path: Path, trainer: str, order: str) -> None:
    peer = _primus_file(tmp_path / "a.pth", trainer)
    encoder, report = _loaded(tmp_path / "a.pth", heads=2)
    assert report.loaded == report.total and encoder.spec.native_crop == (SIDE,) * 3
    volume = torch.from_numpy(normal("input", (1, 1, SIDE, SIDE, SIDE)))
    with torch.inference_mode():
        cells = peer.down_projection(volume)  # type: ignore[operator]
        counted = cells.transpose(2, 3) if order == "hwd" else cells  # EvaMAE counts axis 1 first
        tokens, _ = peer.eva(counted.flatten(2).transpose(1, 2))  # type: ignore[operator]
        expected = tokens.transpose(1, 2).unflatten(2, counted.shape[2:])
        expected = expected.transpose(2, 3) if order == "hwd" else expected
        found = encoder(volume).maps[0]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    assert f"in the order {order}, as trainer {trainer} does" in report.summary()


def test_a_primus_without_layer_scale_and_inner_norm_is_told_from_its_tensors(tmp_path: Path) -> None:
    _primus_file(tmp_path / "a.pth", "BaseMAETrainer", init_values=None, scale_attn_inner=False)
    options = _loaded(tmp_path / "a.pth", heads=2)[0].spec.options
    assert options["layer_scale"] == 0 and options["attention_norm"] is False


def test_a_primus_of_nnunet_counts_axes_as_its_package_does(tmp_path: Path) -> None:
    peer = _primus_file(tmp_path / "a.pth", "PrimusTrainer")
    torch.save({"network_weights": peer.state_dict(), "trainer_name": "nnUNet_Primus_M_Trainer"}, tmp_path / "b.pth")
    assert "axis_order" not in _loaded(tmp_path / "b.pth", heads=2)[0].spec.options


def test_the_wrong_order_of_axes_is_refused(tmp_path: Path) -> None:
    _primus_file(tmp_path / "a.pth", "BaseMAETrainer")
    options = {"dim": 24, "depth": 2, "heads": 2}
    other = build_encoder("primus_s", native_crop=(SIDE,) * 3, options=options)
    with pytest.raises(ValueError, match="trained with axis_order hwd, but primus_s was built with axis_order whd"):
        load_weights(other, read_weights(tmp_path / "a.pth"))


def test_positions_of_another_native_crop_are_resampled(tmp_path: Path) -> None:
    _primus_file(tmp_path / "a.pth", "BaseMAETrainer")
    options = {"dim": 24, "depth": 2, "heads": 2, "axis_order": "hwd"}
    larger = build_encoder("primus_s", native_crop=(32, SIDE, SIDE), options=options)
    report = load_weights(larger, read_weights(tmp_path / "a.pth"))
    assert report.reshaped == ("eva.pos_embed resampled from 3x3x3 to 4x3x3 tokens",)


def test_a_primus_with_another_patch_embedding_is_refused(tmp_path: Path) -> None:
    tensors = {"eva.blocks.0.norm1.weight": torch.ones(24), "eva.pos_embed": torch.ones(1, 27, 24)}
    torch.save(_checkpoint(tensors, "MAE", _plan("PrimusV2S")), tmp_path / "a.pth")
    with pytest.raises(ValueError, match="Primus V2 or V3"):
        read_weights(tmp_path / "a.pth")


def _resenc(**words: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    norm = {"norm_op": nn.InstanceNorm3d, "norm_op_kwargs": {"affine": True, "eps": 1e-5}}
    nonlin = {"nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}}
    network = unet.ResidualEncoderUNet(
        1, 3, [4, 8, 16], nn.Conv3d, [3, 3, 3], [1, 2, 2], [1, 2, 1], 2, [1, 1], conv_bias=True, **norm, **nonlin
    )
    return _random(network), network.state_dict()


def test_a_resenc_file_gives_the_features_of_its_encoder(tmp_path: Path) -> None:
    peer, tensors = _resenc()
    torch.save(_checkpoint(tensors, "BaseMAETrainer", _plan("ResEncL")), tmp_path / "a.pth")
    encoder, report = _loaded(tmp_path / "a.pth")
    assert report.loaded == report.total and not report.unexpected
    assert encoder.spec.name == "resenc_l"
    assert encoder.spec.options == {"widths": [4, 8, 16], "depths": [1, 2, 1]}
    volume = torch.from_numpy(normal("input", (1, 1, 16, 8, 12)))
    with torch.inference_mode():
        skips = peer.encoder(volume)  # type: ignore[operator]
        maps = encoder(volume).maps
    assert all(torch.equal(a, b) for a, b in zip(maps, skips, strict=True))


def test_an_ordinary_nnunet_checkpoint_is_read_unless_its_strides_are_others(tmp_path: Path) -> None:
    def save(strides: list[Any]) -> None:
        configurations = {"3d_fullres": {"architecture": {"arch_kwargs": {"strides": strides}}}}
        init = {"plans": {"configurations": configurations}, "configuration": "3d_fullres"}
        torch.save({"network_weights": _resenc()[1], "trainer_name": "nnUNetTrainer", "init_args": init}, path)

    path = tmp_path / "checkpoint_final.pth"
    save([[1, 1, 1], [2, 2, 2], [2, 2, 2]])
    assert _loaded(path)[0].spec.channels == (4, 8, 16)
    save([[1, 1, 1], [1, 2, 2], [2, 2, 2]])
    with pytest.raises(ValueError, match="ResEnc with strides"):
        read_weights(path)


def test_an_architecture_that_is_not_known_is_named(tmp_path: Path) -> None:
    torch.save(_checkpoint(_resenc()[1], "MAE", _plan("mypkg.Other")), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"names the architecture 'mypkg.Other'; known: PrimusS, "):
        read_weights(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "plan",
    [
        {"architecture_plans": {"arch_kwargs": 3}},
        {"pretrain_plan": "x"},
        {"pretrain_plan": {"configurations": {"a": 1}}},
        {"recommended_downstream_patchsize": [64, 64]},
        {"recommended_downstream_patchsize": [64, 64, "x"]},
    ],
)
def test_a_plan_of_another_make_is_one_line(tmp_path: Path, plan: dict[str, Any]) -> None:
    torch.save(_checkpoint(_resenc()[1], "MAE", plan), tmp_path / "a.pth")
    with pytest.raises(ValueError, match="reading weights") as caught:
        read_weights(tmp_path / "a.pth")
    assert "\n" not in str(caught.value)
