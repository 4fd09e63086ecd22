"""Crops with and without tumour in turn, 1:1 (SMIT benchmark, 3.3.2), drawn by nnU-Net's loader."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager

TRIES = 50  # positions looked at for a crop without tumour

Box = tuple[list[int], list[int]]


class TumourLoader(nnUNetDataLoader):
    """nnU-Net's loader whose crops hold tumour (any foreground label) in turn: with, without, with, ...

    A crop with tumour is centred on a tumour voxel of a case that has one, one without is drawn from any case. The
    turn goes on from batch to batch, so that odd batches are balanced over two of them; every worker process keeps its
    own turn. What counts is the crop before augmentation, which may turn a tumour in or out at its rim.
    """

    def __init__(
        self,
        data: nnUNetBaseDataset,
        batch_size: int,
        loaded_crop: np.ndarray,
        crop: np.ndarray,
        label_manager: LabelManager,
        *,
        transforms: Any = None,
    ) -> None:
        super().__init__(_Remembering(data), batch_size, loaded_crop, crop, label_manager, transforms=transforms)
        self.tumour_labels = list(label_manager.foreground_labels)
        self.with_tumour = [case for case in data.identifiers if self._tumour(data.load_case(case)[3])]
        if not self.with_tumour:
            raise ValueError("sampling tumour_1to1: no case of this split has a tumour; use --set sampling=nnunet")
        self.turn = 0
        self.get_do_oversample = self._holds_tumour

    def get_indices(self) -> list[str]:
        """The cases of the next batch."""
        choices = [self.with_tumour if self._holds_tumour(index) else self.indices for index in range(self.batch_size)]
        return [str(np.random.choice(cases)) for cases in choices]

    def generate_train_batch(self) -> dict[str, Any]:
        """nnU-Net's batch; the next one goes on with the other kind after an odd number of crops."""
        batch = super().generate_train_batch()
        self.turn += self.batch_size
        return batch

    def get_bbox(
        self,
        data_shape: np.ndarray,
        force_fg: bool,
        class_locations: dict | None,
        overwrite_class: Any = None,
        verbose: bool = False,
    ) -> Box:
        """Corners of a crop (nnU-Net's words): around a tumour voxel, or the first random one without tumour."""
        if force_fg:
            return super().get_bbox(data_shape, True, self._tumour({"class_locations": class_locations}))
        return self._without_tumour(data_shape, class_locations)

    def _without_tumour(self, shape: np.ndarray, class_locations: dict | None) -> Box:
        """The random crop with the least tumour; a scan full of tumour has no better one."""
        found = []
        for _ in range(TRIES):
            box = super().get_bbox(shape, False, class_locations)
            found.append((self._tumour_voxels(box), box))
            if found[-1][0] == 0:
                return box
        warnings.warn(f"no crop without tumour in {TRIES} tries; taking the one with the least of it", stacklevel=2)
        return min(found, key=lambda pair: pair[0])[1]

    def _tumour_voxels(self, box: Box) -> int:
        """Tumour in the part of a loaded crop that the network will get: its centre."""
        margin = (np.array(self.patch_size) - np.array(self.final_patch_size)) // 2
        start = np.array(box[0]) + margin
        part = [slice(max(0, low), max(0, low + side)) for low, side in zip(start, self.final_patch_size, strict=True)]
        labels = np.asarray(self._data.segmentation[(slice(None), *part)])
        return int(np.isin(labels, self.tumour_labels).sum())

    def _tumour(self, properties: Mapping[str, Any]) -> dict[Any, np.ndarray]:
        """Places of foreground that preprocessing noted, without those of "anything annotated" (ignore label)."""
        locations = properties["class_locations"] or {}
        return {key: at for key, at in locations.items() if key != self.annotated_classes_key and len(at)}

    def _holds_tumour(self, index: int) -> bool:
        return (self.turn + index) % 2 == 0


class _Remembering:
    """A data set that keeps the label map of the case loaded last, for the loader to look into."""

    def __init__(self, data: nnUNetBaseDataset) -> None:
        self.data, self.identifiers = data, data.identifiers
        self.segmentation: Any = None

    def load_case(self, case: str) -> tuple[Any, ...]:
        """nnU-Net's (data, segmentation, segmentation of the previous stage, properties)."""
        loaded = self.data.load_case(case)
        self.segmentation = loaded[1]
        return loaded
