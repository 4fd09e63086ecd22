"""The segmentor that plans files name: sizes, freezing, gradients, precision, refusals."""

import json

import pytest
import torch
from torch import nn

from nnssl.encoders import ENCODERS
from nnssl.networks.precision import computing, has_fast_bf16
from nnssl.networks.segmentor import EncoderSegmentor

TINY = {"encoder": "vit_tiny_16", "native_crop": [32, 32, 32], "adapter_width": 32, "precision": "fp32"}


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _tiny(channels: int = 1, **words: object) -> EncoderSegmentor:
    torch.manual_seed(0)
    return EncoderSegmentor(channels, 3, **{**TINY, **words})  # type: ignore[arg-type]


def _started(network: EncoderSegmentor) -> EncoderSegmentor:
    """Training, with sampling that depends on the queries (at initialisation it does not, on purpose)."""
    for name, parameter in network.named_parameters():
        if name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
            nn.init.normal_(parameter, std=0.02)
    network.train()
    network.neck.interactions.eval()  # no stochastic depth: it may drop both samples
    return network


@pytest.mark.parametrize(
    ("channels", "classes", "adapter", "total"), [(1, 14, 24_610_720, 42.97), (4, 3, 37_196_224, 55.56)]
)
def test_full_width_on_vit_large_has_the_published_size(
    channels: int, classes: int, adapter: int, total: float
) -> None:
    with torch.device("meta"):
        network = EncoderSegmentor(channels, classes, "vit_large_16", adapter_width=1024)
    assert _count(network.encoder) == 306_910_208
    assert _count(network.neck) - _count(network.encoder) == adapter
    assert round((_count(network) - _count(network.encoder)) / 1e6, 2) == total


@pytest.mark.parametrize("name", [name for name in ENCODERS if name.startswith("vit_")])
def test_every_vision_transformer_gets_an_adapter_of_default_width(name: str) -> None:
    with torch.device("meta"):
        network = EncoderSegmentor(2, 5, name)
    assert network.neck.channels == (min(256, network.encoder.dim // 2),) * 4
    assert network.neck.strides[-1] == network.encoder.patch == int(name.rsplit("_", 1)[1])


@pytest.mark.parametrize("name", ["vit_tiny_8", "vit_tiny_16"])
@pytest.mark.parametrize(("channels", "crop"), [(1, (16, 32, 48)), (2, (32, 32, 16))])
def test_logits_are_float32_at_full_resolution(name: str, channels: int, crop: tuple[int, int, int]) -> None:
    network = _tiny(channels, encoder=name, precision="bf16").eval()
    with torch.inference_mode():
        logits = network(torch.rand(1, channels, *crop))
    assert logits.shape == (1, 3, *crop) and logits.dtype == torch.float32 and logits.isfinite().all()


def test_a_step_changes_adapter_and_decoder_but_not_the_frozen_encoder() -> None:
    network = _started(_tiny())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=1e-2)
    network(torch.rand(2, 1, 32, 16, 16)).square().mean().backward()
    optimiser.step()
    for name, tensor in network.state_dict().items():
        if name.startswith("neck.encoder."):
            assert torch.equal(tensor, before[name]), name
        elif name in dict(network.named_parameters()):
            assert not torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_trainable_parameter_gets_a_finite_gradient(precision: str) -> None:
    """In particular the first injector's, whose only way to the loss leads through the frozen blocks."""
    network = _started(_tiny(precision=precision))
    network(torch.rand(2, 1, 32, 16, 16)).square().mean().backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            if not name.endswith("bias"):
                assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None and name.startswith("neck.encoder."), name


def test_a_frozen_encoder_stays_in_eval_mode() -> None:
    network = _tiny().train()
    assert network.training and network.neck.training and network.decoder.training
    assert not any(module.training for module in network.encoder.modules())


def test_an_unfrozen_encoder_trains_all_it_uses() -> None:
    network = _tiny(frozen=False).train()
    assert network.encoder.training
    network(torch.rand(2, 1, 32, 16, 16)).square().mean().backward()
    without = {name for name, parameter in network.encoder.named_parameters() if parameter.grad is None}
    assert without == {"mask_token", "norm.weight", "norm.bias"}


def test_values_outside_the_stored_range_are_clamped() -> None:
    network = _tiny().eval()
    volume = torch.rand(1, 1, 32, 32, 16)
    with torch.no_grad():
        torch.testing.assert_close(network(volume * 3 - 1), network((volume * 3 - 1).clamp(0, 1)))


def test_the_encoder_range_reaches_the_encoder() -> None:
    """Stored x seen through (0, 1) is stored (x + 1) / 2 seen through (-1, 1)."""
    unit, signed = _tiny(encoder_range=[0, 1]).eval(), _tiny(encoder_range=[-1, 1]).eval()
    volume = torch.rand(1, 1, 32, 32, 16)
    with torch.no_grad():
        torch.testing.assert_close(unit(volume), signed((volume + 1) / 2), rtol=1e-3, atol=1e-4)


def test_bf16_stays_close_to_fp32_with_a_working_encoder() -> None:
    """LayerScale is raised to trained size: at initialisation the blocks do almost nothing and would hide errors."""
    network = _tiny(precision="fp32").eval()
    for name, parameter in network.named_parameters():
        if name.endswith("gamma"):
            parameter.data.fill_(0.1)
    volume = torch.rand(1, 1, 32, 32, 16)
    with torch.no_grad():
        exact = network(volume)
        network.precision = "bf16"
        lowered = network(volume)
    assert 0 < (lowered - exact).abs().mean() < 0.02 * exact.std()


def test_an_outer_fp16_autocast_is_overruled() -> None:
    network = _tiny().eval()
    volume = torch.rand(1, 1, 32, 32, 16)
    with torch.no_grad():
        expected = network(volume)
        with torch.autocast("cpu", dtype=torch.float16):
            torch.testing.assert_close(network(volume), expected)


def test_auto_precision_asks_the_device() -> None:
    with computing(torch.device("cpu"), "auto"):
        assert torch.is_autocast_enabled("cpu") == has_fast_bf16("cpu")
    with computing(torch.device("cpu"), "bf16"):
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16


def test_it_builds_from_the_words_of_a_plans_file() -> None:
    """As nnU-Net does: keywords and JSON lists; it must not have `initialize`, which nnU-Net would apply."""
    words = json.loads(json.dumps({**TINY, "decoder": "unet", "encoder_range": [-1, 1], "frozen": True}))
    network = EncoderSegmentor(input_channels=1, num_classes=2, deep_supervision=False, **words)
    assert not hasattr(network, "initialize")


def test_deep_supervision_is_refused() -> None:
    with pytest.raises(ValueError, match="deep_supervision=True"):
        _tiny(deep_supervision=True)


@pytest.mark.parametrize(("word", "known"), [("encoder", "vit_tiny_16"), ("decoder", "unet"), ("precision", "bf16")])
def test_an_unknown_word_lists_the_known_ones(word: str, known: str) -> None:
    with pytest.raises(ValueError, match=f"'nonsense' is unknown; known.*{known}"):
        _tiny(**{word: "nonsense"})


def test_a_crop_that_is_no_multiple_of_the_patch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the nearest is \(32, 32, 32\)"):
        _tiny()(torch.rand(1, 1, 32, 30, 32))
