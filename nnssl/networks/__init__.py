"""Networks on top of encoders, and the table of decoders."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from nnssl.encoders.base import Encoder, EncoderSpec
from nnssl.networks import swin_unetr, unetr
from nnssl.networks.adapter import ViTAdapter, default_width, why_no_adapter
from nnssl.networks.linear import COARSEST, LinearDecoder
from nnssl.networks.necks import Layers, Pyramid, quarters
from nnssl.networks.swin_unetr import SwinUNETRDecoder
from nnssl.networks.unet import UNetDecoder, doubling
from nnssl.networks.unetr import UNETRDecoder

Neck = ViTAdapter | Pyramid | Layers
CHANNEL_RULES = ("mix", "replicate", "reinit")  # how image channels enter an encoder; see EncoderSegmentor


@dataclass(frozen=True)
class NeckWords:
    """What a neck needs to know besides its encoder."""

    input_channels: int  # of the images
    adapter_width: int | None = None  # None: `default_width`
    offset_order: str = "correct"


@dataclass(frozen=True)
class DecoderLine:
    """A line of the table: how maps reach a decoder, the decoder, and why an encoder does not suit it."""

    neck: Callable[[Any, NeckWords], Neck]  # the encoder is of a kind that `refuses` lets pass
    decoder: Callable[..., nn.Module]  # (input_channels, channels, strides, num_classes, norm=), then (volume, maps)
    refuses: Callable[[EncoderSpec], str | None]  # the reason; None: suits
    norm: str  # default normalisation of the decoder


def check_decoder(spec: EncoderSpec, decoder: str) -> None:
    """Raise a ValueError unless the decoder exists and makes sense on the encoder; the message lists those that do."""
    if decoder not in DECODERS:
        raise ValueError(f"decoder {decoder!r} is unknown; known decoders: {', '.join(DECODERS)}")
    reason = DECODERS[decoder].refuses(spec)
    if reason:
        suited = ", ".join(decoders_for(spec)) or "none"
        raise ValueError(f"decoder {decoder!r} on encoder {spec.name!r}: {reason}; decoders that suit it: {suited}")


def decoders_for(spec: EncoderSpec) -> list[str]:
    """The decoders that make sense on an encoder."""
    return [name for name, line in DECODERS.items() if line.refuses(spec) is None]


def _adapter_or_pyramid(encoder: Encoder, words: NeckWords) -> Neck:
    if encoder.spec.is_pyramid:
        return Pyramid(encoder, words.input_channels)
    width = words.adapter_width or default_width(encoder.spec.channels[0])
    return ViTAdapter(encoder, words.input_channels, width=width, offset_order=words.offset_order)  # type: ignore[arg-type]


def _pyramid(encoder: Encoder, words: NeckWords) -> Neck:
    return Pyramid(encoder, words.input_channels)


def _four_quarters(encoder: Any, words: NeckWords) -> Neck:
    return Layers(encoder, words.input_channels, blocks=quarters(encoder.spec.depth), shared=False)


def _last_layers_or_pyramid(encoder: Any, words: NeckWords) -> Neck:
    if encoder.spec.is_pyramid:
        return Pyramid(encoder, words.input_channels, coarsest=COARSEST)
    depth = encoder.spec.depth
    return Layers(encoder, words.input_channels, blocks=range(depth - COARSEST, depth), shared=True)


def _refused_by_unet(spec: EncoderSpec) -> str | None:
    if not spec.is_pyramid:
        return why_no_adapter(spec)
    if not doubling(spec.strides):
        return f"its maps have strides {spec.strides}, which must start at 1 or 2 and double"
    return None


def _refused_by_swin_unetr(spec: EncoderSpec) -> str | None:
    if spec.strides == swin_unetr.STRIDES:
        return None
    return f"it needs five maps of strides {swin_unetr.STRIDES}, this encoder has {spec.strides}"


def _refused_by_unetr(spec: EncoderSpec) -> str | None:
    if spec.is_pyramid:
        return "it needs the layers of a plain transformer, this encoder is a pyramid"
    if spec.strides[0] not in unetr.PATCHES or spec.depth < unetr.LAYERS:
        return f"it needs a patch of 8 or 16 and 4 or more blocks, this encoder has {spec.strides[0]} and {spec.depth}"
    return None


def _refused_by_linear(spec: EncoderSpec) -> str | None:
    layers = len(spec.strides) if spec.is_pyramid else spec.depth
    return None if layers >= COARSEST else f"it needs four maps or layers, this encoder has {layers}"


DECODERS: dict[str, DecoderLine] = {
    "unet": DecoderLine(_adapter_or_pyramid, UNetDecoder, _refused_by_unet, "instance"),
    "swin_unetr": DecoderLine(_pyramid, SwinUNETRDecoder, _refused_by_swin_unetr, "batch"),
    "unetr": DecoderLine(_four_quarters, UNETRDecoder, _refused_by_unetr, "instance"),
    "linear": DecoderLine(_last_layers_or_pyramid, LinearDecoder, _refused_by_linear, "batch"),
}
