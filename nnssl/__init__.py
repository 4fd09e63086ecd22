"""nnssl: self-supervised 3D encoders and frozen-encoder segmentation on top of nnU-Net."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("nnssl")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+source"
