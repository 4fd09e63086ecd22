"""nnssl_weights on one synthetic file of each published layout, and on files that are none."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nnssl.commands.weights import main
from nnssl.config import to_dict
from nnssl.encoders import build_encoder
from nnssl.encoders.base import Encoder, IntensityRange
from nnssl.networks.segmentor import EncoderSegmentor
from nnssl.weights.encoder_file import read_header, save_encoder
from nnssl.weights.export import nnunet_checkpoint
from nnssl.weights.header import EncoderHeader, record_cases
from tests.weights.toy_files import heads, monai_names, prefixed, published_names, swin_tensors

SWIN = (24, (1, 1, 2, 1), (2, 2, 4, 8), 4)
TINY_PRIMUS = {"dim": 24, "depth": 2, "heads": 2}
TINY_RESENC = {"widths": [4, 6, 8, 8, 8, 8], "depths": [1, 1, 1, 1, 1, 1]}
DAE_STAGE = "layers{}.0.0."


def encoder(name: str, side: int, **options: Any) -> Encoder:
    """An encoder with weights that are not at their trivial start."""
    torch.manual_seed(0)
    built = build_encoder(name, native_crop=(side, side, side), options=options).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return built


def header(built: Encoder) -> EncoderHeader:
    spec = built.spec
    data = record_cases([("Dataset001_A", "case_1"), ("Dataset001_A", "case_2")])
    return EncoderHeader(
        spec.name, spec.native_crop, spec.intensity, (1.0, 1.0, 2.0), "RAS", "XYZ", "threedino", 9, {},
        spec.options, data=data,
    )  # fmt: skip


def nnssl(path: Path) -> None:
    built = encoder("vit_tiny_8", 16)
    save_encoder(path, built, header(built))


def published_3dino(path: Path) -> None:
    state = encoder("vit_tiny_8", 16).state_dict()
    names = published_names(list(state), chunk=3)
    torch.save({"teacher": {**{f"backbone.{names[name]}": state[name] for name in state}, **heads()}}, path)


def smit(path: Path) -> None:
    torch.save(prefixed(swin_tensors(*SWIN, qkv_bias=False), "module."), path)


def swin_unetr(path: Path) -> None:
    tensors = monai_names(swin_tensors(*SWIN, qkv_bias=True), mlp="fc")
    torch.save({"state_dict": prefixed({**tensors, "rotation_head.bias": torch.ones(4)}, "module.")}, path)


def disruptive_autoencoder(path: Path) -> None:
    tensors = monai_names(swin_tensors(*SWIN, qkv_bias=True), stage=DAE_STAGE)
    torch.save({"model": prefixed(tensors, "encoder.")}, path)


def upstream(tensors: dict[str, Tensor], name: str, trainer: str) -> dict[str, Any]:
    """A checkpoint of MIC-DKFZ's pretraining, reduced to what a reader may look at."""
    return {
        "network_weights": tensors,
        "trainer_name": trainer,
        "nnssl_adaptation_plan": {
            "architecture_plans": {"arch_class_name": name, "arch_kwargs": None},
            "pretrain_plan": {"configurations": {"onemmiso": {"spacing": [1, 1, 1], "patch_size": (64, 64, 64)}}},
            "recommended_downstream_patchsize": (64, 64, 64),
        },
    }


def primus(path: Path) -> None:
    pytest.importorskip("dynamic_network_architectures")
    tensors = encoder("primus_s", 64, **TINY_PRIMUS).state_dict()
    torch.save(upstream(tensors, "PrimusS", "BaseEvaMAETrainer"), path)


def resenc(path: Path) -> None:
    pytest.importorskip("dynamic_network_architectures")
    tensors = encoder("resenc_l", 64, **TINY_RESENC).state_dict()
    twice = {name.replace(".conv.", ".all_modules.0."): tensor for name, tensor in tensors.items()}
    torch.save(upstream(prefixed({**tensors, **twice}, "encoder."), "ResEncL", "BaseMAETrainer"), path)


def fine_tuned(path: Path) -> None:
    torch.manual_seed(0)
    words = {"encoder": "vit_tiny_8", "native_crop": [16, 16, 16], "adapter_width": 16}
    plans = {
        "configurations": {"3d_fullres": {"architecture": {"arch_kwargs": words}}},
        "nnssl": {"intensity": to_dict(IntensityRange("window", -200.0, 300.0))},
    }
    weights = EncoderSegmentor(1, 2, **words).state_dict()  # type: ignore[arg-type]
    torch.save({"network_weights": weights, "init_args": {"plans": plans, "configuration": "3d_fullres"}}, path)


def nnunet(path: Path) -> None:
    built = encoder("swin_tiny", 64, depths=[1, 1, 1, 1])
    torch.save(nnunet_checkpoint(built, header(built)), path)


# layout: writer, format, what inspect says, what only the user can say
LAYOUTS: dict[str, tuple[Callable[[Path], None], str, tuple[str, ...], list[str]]] = {
    "nnssl": (nnssl, "nnssl", ("task threedino, 9 steps, 2 cases", "1x1x2 mm", "yours to choose"), []),
    "3dino": (published_3dino, "3dino", ("vit_tiny_8", "crop 16x16x16", "CC BY-NC-ND 4.0", "dino_head"), []),
    "smit": (smit, "smit", ("window_reverse legacy", "all rights are reserved", "window:"), []),
    "monai": (
        swin_unetr,
        "monai-swin",
        ("taps pre_block", "merge_order monai_legacy", "Apache-2.0", "rotation_head"),
        [],
    ),
    "monai15": (
        swin_unetr,
        "monai-swin",
        ("switches     window_reverse correct, merge_order monai15",),
        ["merge_order=monai15"],
    ),
    "dae": (disruptive_autoencoder, "disruptive-autoencoder", ("Apache-2.0",), []),
    "primus": (primus, "primus", ("axis_order hwd", "model card"), ["heads=2"]),
    "resenc": (resenc, "resenc", ("strides 1, 2, 4, 8, 16, 32", "model card"), []),
    "nnssl_train": (fine_tuned, "nnssl_train", ("window:-200,300 -> [-1, 1]",), []),
    "nnunet": (nnunet, "nnunet", ('"depths": [1, 1, 1, 1]', "task threedino, 9 steps"), []),
}


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The output of a command that must succeed."""
    assert main(list(words)) == 0
    return capsys.readouterr().out


def fingerprint(capsys: pytest.CaptureFixture[str], path: Path, *words: str) -> str:
    found = re.search(r"fingerprint (\w{8})\n", run(capsys, "verify", str(path), "-device", "cpu", *words))
    assert found is not None
    return found.group(1)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_file_of_each_layout_is_inspected_converted_exported_and_stays_the_same_encoder(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, layout, said, known = LAYOUTS[name]
    path = tmp_path / "weights.bin"
    write(path)
    settings = ["--set", *known] if known else []
    text = run(capsys, "inspect", str(path), *settings)
    assert re.search(rf"^format +{layout}$", text, re.MULTILINE)
    assert all(words in text for words in said), text
    original = fingerprint(capsys, path, *settings)
    run(capsys, "convert", str(path), "-o", str(tmp_path / "ours"), *settings)
    assert fingerprint(capsys, tmp_path / "ours") == original
    run(capsys, "export", str(tmp_path / "ours"), "-o", str(tmp_path / "x.pth"), "--format", "nnunet")
    assert fingerprint(capsys, tmp_path / "x.pth") == original
    found = read_header(tmp_path / "ours")
    assert found is not None
    assert found.steps == 9 if layout in ("nnssl", "nnunet") else found.plan["converted_from"] == layout


def test_a_licence_that_forbids_sharing_is_said_when_converting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    published_3dino(tmp_path / "a.pth")
    nnssl(tmp_path / "b")
    for name in ("a.pth", "b"):
        run(capsys, "convert", str(tmp_path / name), "-o", str(tmp_path / f"{name}.new"))
    assert [record.getMessage() for record in caplog.records if "warning" in record.getMessage()] == [
        "warning: 3DINO-ViT: CC BY-NC-ND 4.0 (no commercial use, no derivatives); keep a.pth.new to yourself"
    ]
    text = run(capsys, "inspect", str(tmp_path / "a.pth.new"))
    assert "a converted file must not be passed on" in text and "converted from a file of format 3dino" in text


def test_monai_gets_a_swin_of_its_own_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    swin_unetr(tmp_path / "a.pt")
    words = ["export", str(tmp_path / "a.pt"), "-o", str(tmp_path / "b.pt"), "--format", "monai"]
    assert main(words) == 2
    assert "read two cells twice" in capsys.readouterr().err
    text = run(capsys, *words, "--set", "merge_order=monai15")
    assert "SwinUNETR(in_channels=1" in text and "depths=(1, 1, 2, 1)" in text
    state = torch.load(tmp_path / "b.pt", weights_only=True)
    assert "layers3.0.blocks.1.mlp.linear2.weight" in state


class Hostile:
    """Unpickling it would create a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)


def _hostile(path: Path) -> None:
    torch.save({"teacher": {"cls_token": torch.ones(1)}, "x": Hostile(path.parent / "mark")}, path)


def _truncated(path: Path) -> None:
    smit(path)
    path.write_bytes(path.read_bytes()[:-20000])


def _page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html><body>Please log in</body></html>")


def _wrong_size(path: Path) -> None:
    tensors = swin_tensors(*SWIN, qkv_bias=False)
    tensors["layers.2.blocks.0.mlp.fc1.weight"] = torch.ones(7, 7)
    torch.save(tensors, path)


def _renamed(path: Path) -> None:
    torch.save(
        {f"model_{name.replace('.', '_')}": value for name, value in swin_tensors(*SWIN, qkv_bias=False).items()}, path
    )


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "malicious": (_hostile, "nothing was run"),
    "truncated": (_truncated, "truncated or damaged"),
    "web page": (_page, "it is a web page"),
    "wrong size": (_wrong_size, "have another shape"),
    "renamed": (_renamed, "of no known layout"),
    "absent": (lambda path: None, "no such file"),
}


@pytest.mark.parametrize("action", ["inspect", "verify", "convert", "export"])
@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_encoder_ends_in_one_line_and_exit_code_2(
    action: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, reason = BAD[name]
    path = tmp_path / "weights.pth"
    write(path)
    before = sorted(tmp_path.iterdir())
    words = {"convert": ["-o", str(tmp_path / "out")], "export": ["-o", str(tmp_path / "out"), "--format", "nnunet"]}
    assert main([action, str(path), *words.get(action, [])]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("nnssl_weights: error: ") and said.err.count("\n") == 1
    assert reason in said.err and str(path) in said.err
    assert sorted(tmp_path.iterdir()) == before, "nothing may be written or run"


def test_an_existing_file_is_kept_unless_told_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nnssl(tmp_path / "a")
    words = ["convert", str(tmp_path / "a"), "-o", str(tmp_path / "a")]
    assert main(words) == 2 and "it exists" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


def test_help_shows_examples_of_each_action(capsys: pytest.CaptureFixture[str]) -> None:
    for action in ("inspect", "verify", "convert", "export"):
        with pytest.raises(SystemExit) as stopped:
            main([action, "--help"])
        assert stopped.value.code == 0
        assert f"examples:\n  nnssl_weights {action} " in capsys.readouterr().out


def test_malformed_settings_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nnssl(tmp_path / "a")
    assert main(["inspect", str(tmp_path / "a"), "--set", "merge_order"]) == 2
    assert "expected key=value" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "a"), "--set", "merge_order=v2"]) == 2
    assert "has no setting 'merge_order'" in capsys.readouterr().err
