"""Which segmentor a plan names: the encoder under which decoder, and how image channels enter it."""

from dataclasses import dataclass
from typing import Any

from nnssl.encoders.base import EncoderSpec
from nnssl.networks import check_decoder
from nnssl.networks.adapter import default_width
from nnssl.recipe import Preset

DEFAULT_DECODERS = {"vit": "unet", "swin": "swin_unetr", "primus": "unetr", "resenc": "unet"}  # by family


@dataclass(frozen=True)
class NetworkPlan:
    """The words that nnU-Net passes to EncoderSegmentor; `adapter_width` is None where there is no ViT-Adapter."""

    encoder: EncoderSpec
    decoder: str
    input_channels: int
    num_classes: int
    channels: str = "mix"  # one of nnssl.networks.CHANNEL_RULES
    norm: str | None = None  # of the decoder; None: its own
    frozen: bool = True
    adapter_width: int | None = None

    @property
    def passes(self) -> int:
        """How often the encoder reads a volume: once per channel, or once with all channels."""
        apart = self.channels == "mix" and self.encoder.input_channels == 1
        return self.input_channels if apart else 1

    @property
    def keeps_activations(self) -> bool:
        """Whether gradients pass through the encoder: it is trained, or something before its blocks is.

        A patch embedding is new and trained ("reinit") however many channels the images have.
        """
        return not self.frozen or self.adapter_width is not None or self.channels == "reinit"

    def arch_kwargs(self, spec: EncoderSpec) -> dict[str, Any]:
        """The architecture's words in a plans file; `spec` is the encoder with the native crop that it will have."""
        words: dict[str, Any] = {
            "encoder": spec.name,
            "decoder": self.decoder,
            "native_crop": list(spec.native_crop),
            "encoder_range": list(spec.intensity.encoder_range),
            "encoder_options": dict(spec.options),
            "frozen": self.frozen,
            "precision": "auto",
            "channels": self.channels,
            "norm": self.norm,
        }
        return words | ({} if self.adapter_width is None else {"adapter_width": self.adapter_width})


def choose_network(
    spec: EncoderSpec,
    *,
    input_channels: int,
    num_classes: int,
    decoder: str | None = None,
    channels: str | None = None,
    recipe: Preset | None = None,
) -> NetworkPlan:
    """The segmentor: what was asked for, else what the recipe says, else the default of the encoder's family."""
    chosen = choose_decoder(spec, decoder, recipe)
    return NetworkPlan(
        spec,
        chosen,
        input_channels,
        num_classes,
        channels=channels or default_channel_rule(spec, input_channels),
        norm=recipe.norm if recipe else None,
        frozen=recipe.frozen if recipe else True,
        adapter_width=default_width(spec.channels[-1]) if has_adapter(spec, chosen) else None,
    )


def choose_decoder(spec: EncoderSpec, decoder: str | None, recipe: Preset | None) -> str:
    """Name of the decoder.

    Raises:
        ValueError: the decoder does not fit the encoder; the message lists those that do.
    """
    chosen = decoder or (recipe.decoder if recipe else DEFAULT_DECODERS[spec.family])
    check_decoder(spec, chosen)
    return chosen


def default_channel_rule(spec: EncoderSpec, input_channels: int) -> str:
    """ViT: one channel at a time (3DINO); others see all channels at once where there are several.

    Weights that read several channels together go on doing so, adapted where the images have another number of them.
    """
    apart = spec.family == "vit" or input_channels == 1
    return "mix" if apart and spec.input_channels == 1 else "replicate"


def has_adapter(spec: EncoderSpec, decoder: str) -> bool:
    """Whether a ViT-Adapter stands between encoder and decoder."""
    return not spec.is_pyramid and decoder == "unet"
