"""The SwinUNETR decoder: logits of MONAI's network, published parameter counts, what it refuses."""

import re

import pytest
import torch
from torch import nn

from nnssl.networks.segmentor import EncoderSegmentor
from nnssl.networks.swin_unetr import SwinUNETRDecoder

TINY = {"width": 12, "heads": [3, 6, 12, 24]}


def _count(module: nn.Module) -> int:
    """Parameters without the mask token, which segmentors of SMIT and MONAI do not have."""
    return sum(parameter.numel() for name, parameter in module.named_parameters() if not name.endswith("mask_token"))


@pytest.mark.parametrize(
    ("encoder", "options", "total"),
    [
        ("smit_96", {}, 64_700_336),
        ("smit_96", {"qkv_bias": True}, 64_708_112),
        ("smit_repo", {}, 62_898_488),
        ("smit_s", {}, 276_345_000),
        ("smit_p", {"heads": [4, 4, 8, 16]}, 585_743_000),
        ("smit_p", {"heads": [8, 16, 32, 64]}, 586_149_000),
    ],
)
def test_smit_segmentors_have_the_published_sizes(encoder: str, options: dict[str, object], total: int) -> None:
    with torch.device("meta"):
        network = EncoderSegmentor(1, 16, encoder, "swin_unetr", encoder_options=options, norm="batch")
    count = _count(network)
    assert count == total if total % 1000 else round(count, -3) == total


def test_smit_without_affine_norms_has_the_published_size() -> None:
    with torch.device("meta"):
        network = EncoderSegmentor(1, 16, "smit_96", "swin_unetr", norm="instance")
    assert round(_count(network) / 1e6, 2) == 64.69


def test_swin_unetr_has_the_size_of_monais() -> None:
    with torch.device("meta"):
        network = EncoderSegmentor(1, 14, "swin_unetr", "swin_unetr", norm="instance")
    assert _count(network) == 62_187_296


def test_the_parts_have_the_published_sizes() -> None:
    with torch.device("meta"):
        decoder = SwinUNETRDecoder(1, (48, 96, 192, 384, 768), (2, 4, 8, 16, 32), 16, norm="batch")
    sizes = {name: _count(part) for name, part in decoder.named_children()}
    assert sizes == {
        "encoder1": 63_840,
        "encoder2": 124_608,
        "encoder3": 498_048,
        "encoder4": 1_991_424,
        "encoder10": 31_853_568,
        "decoder5": 14_600_448,
        "decoder4": 3_650_688,
        "decoder3": 912_960,
        "decoder2": 228_384,
        "decoder1": 209_952,
        "out": 48 * 16 + 16,
    }


def _our_name(theirs: str) -> str:
    """MONAI's name of a parameter as ours."""
    if theirs.startswith("swinViT."):
        name = re.sub(r"layers(\d)\.0\.", lambda found: f"layers.{int(found[1]) - 1}.", theirs[len("swinViT.") :])
        return "neck.encoder." + name.replace("mlp.linear", "mlp.fc")
    name = theirs.replace("out.conv", "out").replace(".layer.", ".").replace(".conv_block.", ".block.")
    return "decoder." + name.replace("transp_conv", "up").replace(".conv.weight", ".weight").replace(
        ".conv.bias", ".bias"
    )


@pytest.mark.parametrize(("norm", "channels", "crop"), [("instance", 1, (64, 32, 32)), ("batch", 2, (32, 64, 32))])
def test_logits_agree_with_monai(norm: str, channels: int, crop: tuple[int, int, int]) -> None:
    nets = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    theirs = nets.SwinUNETR(channels, 3, feature_size=12, norm_name=norm)
    words = {"channels": "replicate", "encoder_range": (0, 1), "precision": "fp32", "norm": norm, "frozen": False}
    ours = EncoderSegmentor(channels, 3, "swin_unetr", "swin_unetr", encoder_options=TINY, **words)  # type: ignore[arg-type]
    weights = {_our_name(name): value for name, value in theirs.state_dict().items() if not name.endswith("_index")}
    missing, unexpected = ours.load_state_dict(weights, strict=False)
    assert missing == ["neck.encoder.mask_token"] and not unexpected
    volume = torch.rand(2, channels, *crop)
    with torch.no_grad():
        torch.testing.assert_close(ours.train()(volume), theirs.train()(volume), rtol=1e-4, atol=1e-4)


def test_other_strides_are_refused() -> None:
    with pytest.raises(ValueError, match=r"strides \(1, 2, 4, 8, 16\): must be \(2, 4, 8, 16, 32\)"):
        SwinUNETRDecoder(1, (8,) * 5, (1, 2, 4, 8, 16), 3)
