"""The network that nnU-Net's fine-tuning builds for an exported encoder: an EncoderSegmentor that shows its parts.

nnU-Net (development version, `PretrainedTrainer`) builds the class named in a checkpoint and loads encoder and stem
strictly, each into one submodule, the stem outside the encoder because only its first convolution is adapted to the
number of channels. Here both submodules are views of our encoder. Positions are resampled by our own forward pass, so
that nnU-Net has none to resample (key_to_lpe is None).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from nnssl.encoders import encoder_spec
from nnssl.encoders.base import Encoder
from nnssl.encoders.exported_names import BODY, ENTRY, SHOWN_AS
from nnssl.networks import decoders_for
from nnssl.networks.encoder_layers import input_layer
from nnssl.networks.segmentor import EncoderSegmentor


class PretrainedResidualEncoderUNet(nn.Module):
    """Normalised volumes of nnU-Net to logits; nnU-Net asks for a class name that ends like this.

    Args:
        input_channels: channels of a volume; the encoder reads them together.
        num_classes: channels of the logits.
        encoder: a name of `nnssl.encoders.ENCODERS`.
        native_crop: crop of the pretraining in voxels (X, Y, Z).
        encoder_options: fields of the encoder's line in the table that differ.
        intensity: what the encoder saw, as JSON values of `IntensityRange`.
        z_score_ends: z-scores that become the ends of the encoder's range; what lies outside is clipped. nnU-Net's
            fine-tuning feeds z-scores of the whole image, whatever the modality.
        decoder: a name of `nnssl.networks.DECODERS`; None is the first that suits the encoder.
        deep_supervision: accepted because nnU-Net passes it; must be False.
    """

    def __init__(  # the words are fixed by checkpoints
        self,
        input_channels: int,
        num_classes: int,
        encoder: str,
        native_crop: Sequence[int],
        encoder_options: Mapping[str, Any],
        intensity: Mapping[str, Any],
        z_score_ends: Sequence[float],
        decoder: str | None = None,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        low, high = z_score_ends
        self.z_score_ends = (float(low), float(high))
        self.segmentor = EncoderSegmentor(
            input_channels,
            num_classes,
            encoder,
            decoder or decoders_for(encoder_spec(encoder, options=encoder_options))[0],
            deep_supervision=deep_supervision,
            native_crop=native_crop,
            encoder_range=intensity["encoder_range"],
            encoder_options=encoder_options,
            frozen=False,
            channels="replicate",
        )
        pretrained = self.segmentor.encoder
        first = input_layer(pretrained)
        stem = first.partition(".")[0]
        self.body = _view_without(pretrained, stem)
        self.entry = nn.ModuleDict({stem: pretrained.get_submodule(stem)})
        self.key_to_encoder, self.key_to_stem = BODY, f"{ENTRY}.{stem}"
        self.keys_to_in_proj = (f"{ENTRY}.{first}",)
        self.key_to_lpe = None

    def forward(self, volume: Tensor) -> Tensor:
        """Float32 logits (B, num_classes, X, Y, Z) of z-scored volumes (B, C, X, Y, Z)."""
        low, high = self.z_score_ends
        return self.segmentor((volume.float() - low) / (high - low))


def _view_without(encoder: Encoder, stem: str) -> nn.Module:
    """A module that owns all of the encoder's parts but the stem, together with the encoder."""
    view = nn.Module()
    for name, part in encoder.named_children():
        if name != stem:
            view.add_module(name, part)
    for name, parameter in encoder.named_parameters(recurse=False):
        view.register_parameter(SHOWN_AS.get(name, name), parameter)
    return view
