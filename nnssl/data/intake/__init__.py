"""Intake: what a raw data set offers, and how any folder of scans becomes one."""

from nnssl.data.intake.raw import RawDataset, files_key, open_dataset

__all__ = ["RawDataset", "files_key", "open_dataset"]
