"""Raw scans to stored volumes in [0, 1]: nnU-Net's steps with our intensity rule, labels optional, one scan at a time.

`NnsslPlansManager` and `NnsslConfigurationManager` make nnU-Net's predictor use it: their instances unpickle in worker
processes by importing this module, where a class found by name in nnunetv2's folders would be missing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from numpy.typing import NDArray

from nnssl.config import from_dict
from nnssl.data.case_store import StoredCase, write_case
from nnssl.data.cropping import crop_to_nonzero
from nnssl.data.intake import open_dataset
from nnssl.data.preprocess_run import Request, Target, run_cases
from nnssl.data.resampling import CUBIC, resample_image, resample_labels
from nnssl.data.stored_shape import DTYPE_KEY, SMOOTH_KEY, stored_shape
from nnssl.dataset_conversion.raw_dataset import Case
from nnssl.encoders.base import IntensityRange
from nnssl.paths import load_json, preprocessed_folder
from nnssl.transforms.stored_intensity import as_channel_properties, channel_bounds, to_stored

PERCENTILE_SCHEME = "PercentileNormalization"
_CUBIC = ("resample_data_or_seg_to_shape", {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": False})
_VOTE = (
    "resample_torch_fornnunet",
    {"is_seg": True, "force_separate_z": False, "memefficient_seg_resampling": False},
)
Volume = NDArray[Any]


class NnsslConfigurationManager(ConfigurationManager):
    """nnU-Net's configuration with our preprocessor."""

    @property
    def preprocessor_class(self) -> type["NnsslPreprocessor"]:  # type: ignore[override]
        """Serves percentile and window plans alike."""
        return NnsslPreprocessor


class NnsslPlansManager(PlansManager):
    """nnU-Net's plans with our configuration manager."""

    def get_configuration(self, configuration_name: str) -> NnsslConfigurationManager:
        """A configuration by name; an unknown one is an error that lists the known ones."""
        known = list(self.plans["configurations"])
        if configuration_name not in known:
            raise ValueError(
                f"plans {self.plans_name}: no configuration {configuration_name!r}; has {', '.join(known)}"
            )
        return NnsslConfigurationManager(self._internal_resolve_configuration_inheritance(configuration_name))


class Scan(NamedTuple):
    """One case in the axes of the plan, cropped to nonzero and scaled, before it is resampled."""

    images: NDArray[np.float32]  # (C, X, Y, Z)
    labels: Volume  # (1, X, Y, Z); without a label map 0 inside the body and -1 outside
    spacing_mm: list[float]
    properties: dict[str, Any]  # nnU-Net's
    labelled: bool


class NnsslPreprocessor(DefaultPreprocessor):
    """DefaultPreprocessor with per-image percentiles of the whole image, taken before the crop to nonzero.

    Plans with stock intensity schemes give what DefaultPreprocessor gives (images to rounding, many times faster). The
    label map may be None.
    """

    def __init__(self, verbose: bool = False) -> None:
        super().__init__(verbose)

    def run_case_npy(
        self,
        data: NDArray[Any],
        seg: NDArray[Any] | None,
        properties: dict[str, Any],
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict[str, Any] | str,
    ) -> tuple[NDArray[np.float32], NDArray[np.int16], dict[str, Any]]:
        """As nnU-Net's, which see; its inputs stay as they are."""
        labels = None if seg is None else seg.copy()
        scan = self.prepare(data.astype(np.float32), labels, properties, plans_manager, configuration_manager)
        properties.update(scan.properties)
        stored = self.resample(scan, plans_manager, configuration_manager, dataset_json)
        properties.update(stored.properties)
        return stored.images, stored.labels, properties

    def prepare(
        self,
        images: NDArray[np.float32],
        labels: Volume | None,
        properties: dict[str, Any],
        plans: PlansManager,
        configuration: ConfigurationManager,
    ) -> Scan:
        """Turn the axes, find the percentiles, crop to nonzero, scale to [0, 1]; the inputs may be overwritten."""
        if labels is not None and images.shape[1:] != labels.shape[1:]:
            raise ValueError(f"image of {images.shape[1:]} voxels and label map of {labels.shape[1:]}: they must agree")
        axes = plans.transpose_forward
        order = [0, *(axis + 1 for axis in axes)]
        images, labels = images.transpose(order), None if labels is None else labels.transpose(order)
        ranges = plans.foreground_intensity_properties_per_channel
        if PERCENTILE_SCHEME in configuration.normalization_schemes:
            intensity = from_dict(IntensityRange, plans.plans["nnssl"]["intensity"])
            ranges = as_channel_properties(channel_bounds(images, intensity.low, intensity.high))
        cropped, marked, box = crop_to_nonzero(images, labels)
        found = {
            "shape_before_cropping": images.shape[1:],
            "bbox_used_for_cropping": box,
            "shape_after_cropping_and_before_resampling": cropped.shape[1:],
        }
        scaled = self._normalize(cropped, marked, configuration, ranges)
        spacing_mm = [float(properties["spacing"][axis]) for axis in axes]
        return Scan(scaled, marked, spacing_mm, {**properties, **found}, labels is not None)

    def resample(
        self,
        scan: Scan,
        plans: PlansManager,
        configuration: ConfigurationManager,
        dataset_json: dict[str, Any] | str,
    ) -> StoredCase:
        """What one configuration stores of a scan."""
        settings = configuration.configuration
        shape = stored_shape(scan.images.shape[1:], scan.spacing_mm, settings)
        images = _resampled_images(scan, shape, configuration)
        labels = _resampled_labels(scan, shape, configuration)
        properties = {**scan.properties, "class_locations": {}}
        if scan.labelled:
            words = load_json(Path(dataset_json)) if isinstance(dataset_json, str) else dataset_json
            manager = plans.get_label_manager(words)
            wanted = manager.foreground_regions if manager.has_regions else list(manager.foreground_labels)
            if manager.has_ignore_label:
                wanted = [*wanted, [-1, *manager.all_labels]]
            properties["class_locations"] = self._sample_foreground_locations(labels, wanted)
        return StoredCase(images.astype(settings.get(DTYPE_KEY, "float32"), copy=False), labels, properties)

    def store_case(
        self, case: Case, targets: Sequence[Target], plans: NnsslPlansManager, dataset_json: dict[str, Any]
    ) -> None:
        """Read one case and store it for every target; it is decoded and scaled once."""
        reader = plans.image_reader_writer_class()
        images, properties = reader.read_images([str(path) for path in case.images])
        labels = None if case.label is None else reader.read_seg(str(case.label))[0]
        first = plans.get_configuration(targets[0].configuration)
        scan = self.prepare(images, labels, properties, plans, first)
        del images, labels
        for target in targets:
            configuration = plans.get_configuration(target.configuration)
            stored = self.resample(scan, plans, configuration, dataset_json)
            write_case(target.folder, case.identifier, stored, key=target.key)

    def run(
        self, dataset_name_or_id: int | str, configuration_name: str, plans_identifier: str, num_processes: int
    ) -> dict[str, str]:
        """nnU-Net's words for one configuration; see `run_cases`.

        Returns:
            Cases that failed, with one line each; the others are stored.
        """
        raw = open_dataset(dataset_name_or_id)
        plans = NnsslPlansManager(load_json(preprocessed_folder() / raw.name / f"{plans_identifier}.json"))
        return run_cases(self.store_case, raw, plans, Request((configuration_name,), num_processes))

    def _normalize(
        self,
        data: NDArray[np.float32],
        seg: NDArray[Any],
        configuration_manager: ConfigurationManager,
        foreground_intensity_properties_per_channel: dict[str, dict[str, float]],
    ) -> NDArray[np.float32]:
        if PERCENTILE_SCHEME not in configuration_manager.normalization_schemes:
            return super()._normalize(data, seg, configuration_manager, foreground_intensity_properties_per_channel)
        for channel, properties in enumerate(foreground_intensity_properties_per_channel.values()):
            bounds = properties["percentile_00_5"], properties["percentile_99_5"]
            data[channel] = to_stored(data[channel], bounds)
        return data


def _resampled_images(scan: Scan, shape: Sequence[int], configuration: ConfigurationManager) -> NDArray[np.float32]:
    """By the function that the plan names; nnU-Net's cubic one, and what is smoothed where it shrinks, by matrices."""
    settings = configuration.configuration
    named = (settings["resampling_fn_data"], settings["resampling_fn_data_kwargs"])
    smooth = bool(settings.get(SMOOTH_KEY))
    if named == _CUBIC or smooth:
        return np.stack([resample_image(image, shape, order=CUBIC, antialias=smooth) for image in scan.images])
    return configuration.resampling_fn_data(scan.images, shape, scan.spacing_mm, configuration.spacing)


def _resampled_labels(scan: Scan, shape: Sequence[int], configuration: ConfigurationManager) -> NDArray[np.int16]:
    settings = configuration.configuration
    if (settings["resampling_fn_seg"], settings["resampling_fn_seg_kwargs"]) == _VOTE:
        return resample_labels(scan.labels[0], shape)[None]
    return configuration.resampling_fn_seg(scan.labels, shape, scan.spacing_mm, configuration.spacing).astype(np.int16)
