"""A (frozen) pretrained encoder with a neck and a decoder; the network that plans files name."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnssl.encoders import build_encoder, encoder_spec
from nnssl.encoders.base import Encoder, check_crop, to_encoder_range
from nnssl.networks import CHANNEL_RULES, DECODERS, Neck, NeckWords, check_decoder
from nnssl.networks.blocks import check_norm
from nnssl.networks.encoder_layers import add_low_rank, freeze, input_layer, is_low_rank
from nnssl.networks.precision import check_precision, computing


class EncoderSegmentor(nn.Module):
    """Stored volumes in [0, 1] to logits; nnU-Net builds it from `plans.json` with exactly these words.

    Args:
        input_channels: channels of a volume.
        num_classes: channels of the logits.
        encoder: a name of `nnssl.encoders.ENCODERS`.
        decoder: a name of `nnssl.networks.DECODERS` that suits the encoder.
        deep_supervision: accepted because nnU-Net passes it; must be False.
        native_crop: crop of the pretraining in voxels (X, Y, Z); None is the encoder's own.
        encoder_range: what stored 0 and 1 become for the encoder.
        encoder_options: fields of the encoder's line in the table that differ.
        adapter_width: channels of a ViT-Adapter; None is `default_width`, the ViT's width is the reference.
        frozen: the encoder keeps its weights and stays in eval mode; gradients still pass through it.
        precision: "auto" (bfloat16 where the device is fast at it), "bf16" or "fp32".
        offset_order: "correct", or "reference" for adapters trained with the published 3DINO code.
        channels: "mix": the encoder sees one channel at a time and 1x1x1 convolutions merge them (3DINO);
            "replicate": it reads them together, its weights adapted; "reinit": together, through a new, trained
            patch embedding (3DINO's ablation).
        norm: normalisation of the decoder, one of `nnssl.networks.blocks.NORMS`; None is the decoder's own.
        unfreeze_last: blocks at the end of a frozen encoder that are trained all the same.
        lora_rank: rank of trained additions to a frozen encoder's attention; 0 is none.
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
        channels: str = "mix",
        norm: str | None = None,
        unfreeze_last: int = 0,
        lora_rank: int = 0,
    ) -> None:
        super().__init__()
        _check_words(deep_supervision, precision, channels, norm)
        together = {"input_channels": 1 if channels == "mix" else input_channels}
        built = _build_encoder(encoder, decoder, native_crop, {**(encoder_options or {}), **together})
        line = DECODERS[decoder]
        low, high = encoder_range
        self.encoder_range, self.precision = (float(low), float(high)), precision
        self.frozen, self.channels = frozen, channels
        self.neck: Neck = line.neck(built, NeckWords(input_channels, adapter_width, offset_order))
        self.decoder = line.decoder(
            input_channels, self.neck.channels, self.neck.strides, num_classes, norm=norm or line.norm
        )
        self._trained_blocks = self._limit_training(unfreeze_last, lora_rank)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.train()

    @property
    def encoder(self) -> Encoder:
        """The pretrained part."""
        return self.neck.encoder

    def train(self, mode: bool = True) -> "EncoderSegmentor":
        """As usual, but the frozen part of the encoder stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
            for block in self._trained_blocks:
                block.train(mode)
        return self

    def forward(self, volume: Tensor) -> Tensor:
        """Float32 logits (B, num_classes, X, Y, Z) of stored volumes (B, C, X, Y, Z).

        Values outside [0, 1] are clamped; sides must be multiples of the encoder's crop multiple.
        """
        check_crop(self.encoder.spec, tuple(volume.shape[2:]))
        with computing(volume.device, self.precision):
            scaled = to_encoder_range(volume.float().clamp(0, 1), self.encoder_range)
            scaled = scaled.contiguous(memory_format=torch.channels_last_3d)
            logits = self.decoder(scaled, self.neck(scaled))
        return logits.float().contiguous()

    def _limit_training(self, unfreeze_last: int, lora_rank: int) -> list[nn.Module]:
        """Take the gradient from what is not trained; return the encoder's blocks that are trained nevertheless."""
        if not self.frozen:
            _check_nothing_to_unfreeze(unfreeze_last, lora_rank)
            return []
        trained = freeze(self.encoder, last=unfreeze_last)
        if self.channels == "reinit":
            self.encoder.get_submodule(input_layer(self.encoder)).requires_grad_(True)
        if lora_rank:
            add_low_rank(self.encoder, lora_rank)
        return trained


def load_encoder_weights(segmentor: EncoderSegmentor, weights: Mapping[str, Tensor]) -> None:
    """Put pretrained weights into the encoder in place, strictly, whatever else is trained beside them.

    Low-rank additions may be missing; a re-initialised patch embedding (channels="reinit") keeps its values.

    Raises:
        ValueError: other tensors are missing, unexpected or of another shape.
    """
    encoder = segmentor.encoder
    own = encoder.state_dict()
    new = f"{input_layer(encoder)}." if segmentor.channels == "reinit" else None
    kept = {name: value for name, value in own.items() if new and name.startswith(new)}
    additions = {name: value for name, value in own.items() if is_low_rank(name)}
    try:
        encoder.load_state_dict({**additions, **weights, **kept})
    except RuntimeError as error:
        raise ValueError(
            f"loading weights into encoder {encoder.spec.name!r}: {' '.join(str(error).split())}"
        ) from error


def _build_encoder(name: str, decoder: str, native_crop: Sequence[int] | None, options: Mapping[str, Any]) -> Encoder:
    crop: Any = tuple(int(side) for side in native_crop) if native_crop is not None else None
    check_decoder(encoder_spec(name, crop, options=options), decoder)
    encoder = build_encoder(name, native_crop=crop, options=options)
    for parameter_name, parameter in encoder.named_parameters():
        if parameter_name.endswith("mask_token"):
            parameter.requires_grad_(False)  # pretraining only
    return encoder


def _check_words(deep_supervision: bool, precision: str, channels: str, norm: str | None) -> None:
    if deep_supervision:
        raise ValueError(
            "EncoderSegmentor got deep_supervision=True: it has one output; train with a trainer without it"
        )
    if channels not in CHANNEL_RULES:
        raise ValueError(f"channels {channels!r} is unknown; known: {', '.join(CHANNEL_RULES)}")
    check_precision(precision)
    if norm is not None:
        check_norm(norm)


def _check_nothing_to_unfreeze(unfreeze_last: int, lora_rank: int) -> None:
    if unfreeze_last or lora_rank:
        raise ValueError(
            f"unfreeze_last={unfreeze_last} and lora_rank={lora_rank} with frozen=False: all of the encoder is "
            "trained already; set both to 0, or frozen=True"
        )
