"""Networks on top of encoders, and the table of decoders."""

from nnssl.networks.unet import UNetDecoder

# name: decoder(input_channels, channels, strides, num_classes), called with (volume, maps)
DECODERS: dict[str, type[UNetDecoder]] = {
    "unet": UNetDecoder,
}
