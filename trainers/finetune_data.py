"""FineTuneData: which cases, crops and augmentation a fine-tuning sees, by nnU-Net's loaders."""

from pathlib import Path
from typing import Any

import numpy as np
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnssl.data.volumes import stored_cases
from nnssl.recipe import FineTuneRecipe
from nnssl.trainers.augmentation import AxisFirst, coarse_axis, for_stored_range, front, mirror_axes
from nnssl.trainers.splits import cases_of_fold, labelled_subset, splits_for
from nnssl.trainers.tumour_sampling import TumourLoader

TILT = 30 / 180 * np.pi  # nnU-Net: rotation of isotropic crops; crops of thick slices turn freely within the slice


class FineTuneData(nnUNetTrainer):
    """The trainer's choice of cases, crops and augmentation; its subclass sets `recipe` and `run`."""

    recipe: FineTuneRecipe
    run: dict[str, Any]  # plans["nnssl"]["run"]
    dataset_class: Any

    def do_split(self) -> tuple[list[str], list[str]]:
        """(training, validation) cases of the fold: patients stay together, few labels are a nested subset."""
        folder = Path(self.preprocessed_dataset_folder_base)
        identifiers = stored_cases(Path(self.preprocessed_dataset_folder))
        train, validation = cases_of_fold(splits_for(folder, identifiers), self.fold)
        number = self.run.get("num_labelled")
        if number is not None:
            train = labelled_subset(train, number, self.run.get("seed", 0))
        self.print_to_log_file(f"fold {self.fold}: {len(train)} training and {len(validation)} validation cases")
        return train, validation

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(  # noqa: N802
        self,
    ) -> tuple[tuple[float, float], bool, np.ndarray, tuple[int, ...]]:
        """nnU-Net's choices with the coarse axis from the plan's spacing and mirroring from the labels' names."""
        crop = np.array(self.configuration_manager.patch_size)
        axis = coarse_axis(self.configuration_manager.spacing)
        angle = TILT if axis is None else np.pi
        loaded = np.array(get_patch_size(crop, *[(-angle, angle)] * 3, (0.85, 1.25)))
        if axis is not None:
            loaded[axis] = crop[axis]
        axes = mirror_axes(self.dataset_json["labels"])
        self.inference_allowed_mirroring_axes = axes
        self.print_to_log_file(f"crop loaded before rotation: {loaded.tolist()}, mirrored axes: {axes}")
        return (-angle, angle), axis is not None, loaded, axes

    def get_training_transforms(  # type: ignore[override]
        self,
        patch_size: Any,
        rotation_for_DA: Any,
        deep_supervision_scales: Any,
        mirror_axes: tuple[int, ...],
        do_dummy_2d_data_aug: bool,
        **options: Any,
    ) -> BasicTransform:
        """nnU-Net's transforms for stored [0, 1] volumes; thick slices are turned within the slice only."""
        axis = coarse_axis(self.configuration_manager.spacing) if do_dummy_2d_data_aug else None
        order = (0, 1, 2) if axis is None else front(axis)
        stock = nnUNetTrainer.get_training_transforms(
            [patch_size[index] for index in order],
            rotation_for_DA,
            deep_supervision_scales,
            tuple(order.index(mirrored) for mirrored in mirror_axes),
            do_dummy_2d_data_aug,
            **options,
        )
        transforms = for_stored_range(stock)
        return transforms if axis is None else AxisFirst(axis, transforms)

    def get_dataloaders(self) -> tuple[Any, Any]:
        """nnU-Net's loaders; with sampling "tumour_1to1" every other training crop holds tumour.

        Validation crops are drawn as ever, so that the pseudo Dice of both kinds of training can be compared.
        """
        if self.recipe.sampling == "nnunet":
            return super().get_dataloaders()
        if self.dataset_class is None:
            self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        angles, in_slice, loaded, axes = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        crop, labels = self.configuration_manager.patch_size, self.label_manager
        words = {
            "is_cascaded": self.is_cascaded,
            "foreground_labels": labels.foreground_labels,
            "regions": labels.foreground_regions if labels.has_regions else None,
            "ignore_label": labels.ignore_label,
        }
        masks = self.configuration_manager.use_mask_for_norm
        training = self.get_training_transforms(crop, angles, None, axes, in_slice, use_mask_for_norm=masks, **words)
        data, validation_data = self.get_tr_and_val_datasets()
        loader = TumourLoader(data, self.batch_size, loaded, crop, labels, transforms=training)
        transforms = self.get_validation_transforms(None, **words)
        validation = nnUNetDataLoader(
            validation_data,
            self.batch_size,
            crop,
            crop,
            labels,
            oversample_foreground_percent=self.oversample_foreground_percent,
            probabilistic_oversampling=self.probabilistic_oversampling,
            transforms=transforms,
        )
        return self._augmenter(loader, 1), self._augmenter(validation, 2)

    def _augmenter(self, loader: nnUNetDataLoader, share: int) -> Any:
        """The loader in this process or in nnU-Net's number of workers divided by `share`, started."""
        workers = get_allowed_n_proc_DA() // share
        if get_allowed_n_proc_DA() == 0:
            augmenter = SingleThreadedAugmenter(loader, None)
        else:
            augmenter = NonDetMultiThreadedAugmenter(
                data_loader=loader,
                transform=None,
                num_processes=max(1, workers),
                num_cached=max(3, workers // 2),
                seeds=None,
                pin_memory=self.device.type == "cuda",
                wait_time=0.002,
            )
        next(augmenter)
        return augmenter
