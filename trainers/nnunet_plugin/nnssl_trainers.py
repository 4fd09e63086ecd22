"""The one file that nnU-Net's trainer look-up (nnUNet_extTrainer) scans."""

from nnssl.trainers.frozen_encoder import FrozenEncoderTrainer

__all__ = ["FrozenEncoderTrainer"]
