"""A (frozen) pretrained encoder with an adapter and a decoder; the network that plans files name."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnssl.encoders import build_encoder
from nnssl.encoders.base import check_crop, to_encoder_range
from nnssl.encoders.vit import VisionTransformer
from nnssl.networks import DECODERS
from nnssl.networks.adapter import ViTAdapter, default_width
from nnssl.networks.precision import check_precision, computing


class EncoderSegmentor(nn.Module):
    """Stored volumes in [0, 1] to logits; nnU-Net builds it from `plans.json` with exactly these words.

    Args:
        input_channels: channels of a volume; the encoder sees one at a time.
        num_classes: channels of the logits.
        encoder: a name of `nnssl.encoders.ENCODERS`.
        decoder: a name of `nnssl.networks.DECODERS`.
        deep_supervision: accepted because nnU-Net passes it; must be False.
        native_crop: crop of the pretraining in voxels (X, Y, Z); None is the encoder's own.
        encoder_range: what stored 0 and 1 become for the encoder.
        encoder_options: fields of the encoder's line in the table that differ.
        adapter_width: channels of the adapter; None is `default_width`, the ViT's width is the reference.
        frozen: the encoder keeps its weights and stays in eval mode; gradients still pass through it.
        precision: "auto" (bfloat16 where the device is fast at it), "bf16" or "fp32".
        offset_order: "correct", or "reference" for adapters trained with the published 3DINO code.
    """

    def __init__(  # the words are fixed by plans files
        self,
        input_channels: int,
        num_classes: int,
        encoder: str,
        decoder: str = "unet",
        deep_supervision: bool = False,
        native_crop: Sequence[int] | None = None,
        encoder_range: Sequence[float] = (-1.0, 1.0),
        encoder_options: Mapping[str, Any] | None = None,
        adapter_width: int | None = None,
        frozen: bool = True,
        precision: str = "auto",
        offset_order: str = "correct",
    ) -> None:
        super().__init__()
        _check_words(decoder, deep_supervision, precision)
        vit = _build_vit(encoder, native_crop, encoder_options)
        width = adapter_width or default_width(vit.dim)
        low, high = encoder_range
        self.encoder_range, self.frozen, self.precision = (float(low), float(high)), frozen, precision
        self.adapter = ViTAdapter(vit, input_channels, width=width, offset_order=offset_order)
        self.decoder = DECODERS[decoder](input_channels, self.adapter.channels, self.adapter.strides, num_classes)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        if frozen:
            self.encoder.requires_grad_(False)
            self.encoder.eval()

    @property
    def encoder(self) -> VisionTransformer:
        """The pretrained part."""
        return self.adapter.encoder

    def train(self, mode: bool = True) -> "EncoderSegmentor":
        """As usual, but a frozen encoder stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, volume: Tensor) -> Tensor:
        """Float32 logits (B, num_classes, X, Y, Z) of stored volumes (B, C, X, Y, Z).

        Values outside [0, 1] are clamped; sides must be multiples of the encoder's patch.
        """
        check_crop(self.encoder.spec, tuple(volume.shape[2:]))
        with computing(volume.device, self.precision):
            scaled = to_encoder_range(volume.float().clamp(0, 1), self.encoder_range)
            scaled = scaled.contiguous(memory_format=torch.channels_last_3d)
            logits = self.decoder(scaled, self.adapter(scaled))
        return logits.float().contiguous()


def _check_words(decoder: str, deep_supervision: bool, precision: str) -> None:
    if decoder not in DECODERS:
        raise ValueError(f"decoder {decoder!r} is unknown; known decoders: {', '.join(DECODERS)}")
    if deep_supervision:
        raise ValueError(
            "EncoderSegmentor got deep_supervision=True: it has one output; train with a trainer without it"
        )
    check_precision(precision)


def _build_vit(name: str, native_crop: Sequence[int] | None, options: Mapping[str, Any] | None) -> VisionTransformer:
    crop = tuple(int(side) for side in native_crop) if native_crop is not None else None
    encoder = build_encoder(name, native_crop=crop, options=options)  # type: ignore[arg-type]
    if not isinstance(encoder, VisionTransformer):
        raise ValueError(f"encoder {name!r} is no vision transformer: the adapter needs one")
    return encoder
