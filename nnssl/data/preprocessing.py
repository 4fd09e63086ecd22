"""Raw scans to stored volumes in [0, 1]: nnU-Net's preprocessing with our intensity rule, labels optional.

`NnsslPlansManager` and `NnsslConfigurationManager` make nnU-Net's predictor use it: their instances unpickle in worker
processes by importing this module, where a class found by name in nnunetv2's folders would be missing.
"""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from numpy.typing import NDArray

from nnssl.config import from_dict
from nnssl.data.fingerprint import load_fingerprint
from nnssl.data.intake import RawDataset, open_dataset
from nnssl.data.parallel import map_cases
from nnssl.data.stamp import remove_stamp, write_stamp
from nnssl.dataset_conversion.raw_dataset import Case
from nnssl.encoders.base import IntensityRange
from nnssl.paths import load_json, preprocessed_folder
from nnssl.transforms.stored_intensity import as_channel_properties, channel_bounds, to_stored

PERCENTILE_SCHEME = "PercentileNormalization"


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


class NnsslPreprocessor(DefaultPreprocessor):
    """DefaultPreprocessor with per-image percentiles of the whole image, taken before the crop to nonzero.

    Plans with stock intensity schemes give exactly what DefaultPreprocessor gives. The label map may be None.
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
    ) -> tuple[NDArray[np.float32], NDArray[np.int8], dict[str, Any]]:
        """As nnU-Net's, which see; the percentile bounds travel in the plans' channel properties."""
        if PERCENTILE_SCHEME in configuration_manager.normalization_schemes:
            intensity = from_dict(IntensityRange, plans_manager.plans["nnssl"]["intensity"])
            bounds = as_channel_properties(channel_bounds(data, intensity.low, intensity.high))
            plans_manager = type(plans_manager)(
                plans_manager.plans | {"foreground_intensity_properties_per_channel": bounds}
            )
        data, seg, properties = super().run_case_npy(
            data, seg, properties, plans_manager, configuration_manager, dataset_json
        )
        properties.setdefault("class_locations", {})
        return data, seg, properties

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

    def run_case_save(
        self,
        output_filename_truncated: str,
        image_files: list[str],
        seg_file: str | None,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict[str, Any] | str,
    ) -> None:
        """Preprocess and store one case; its `.b2nd` appears last, so that a case that is there is complete."""
        target = Path(output_filename_truncated)
        partial = target.parent / ".partial"
        partial.mkdir(exist_ok=True)
        super().run_case_save(
            str(partial / target.name), image_files, seg_file, plans_manager, configuration_manager, dataset_json
        )
        for ending in (".pkl", "_seg.b2nd", ".b2nd"):
            (partial / f"{target.name}{ending}").replace(target.parent / f"{target.name}{ending}")

    def run(
        self,
        dataset_name_or_id: int | str,
        configuration_name: str,
        plans_identifier: str,
        num_processes: int,
    ) -> dict[str, str]:
        """Preprocess all usable cases of one configuration.

        Cases that the fingerprint found bad are left out. Volumes of an earlier run and their stamp are removed first:
        they may follow another plan. A new stamp is written when all cases were tried.

        Returns:
            Cases that failed, with one line each; the others are stored.
        """
        raw = open_dataset(dataset_name_or_id)
        plans = load_json(preprocessed_folder() / raw.name / f"{plans_identifier}.json")
        job = _Job(NnsslPlansManager(plans), configuration_name, raw)
        output = preprocessed_folder() / raw.name / job.configuration.data_identifier
        remove_stamp(output.parent, plans, configuration_name)
        if output.is_dir():
            shutil.rmtree(output)
        output.mkdir(parents=True)
        calls = {case.identifier: self._call(case, output, job) for case in usable_cases(raw, configuration_name)}
        title = f"preprocess {raw.name} {configuration_name}"
        outcomes = map_cases(self.run_case_save, calls, processes=num_processes, title=title)
        shutil.rmtree(output / ".partial", ignore_errors=True)
        write_stamp(output.parent, plans, configuration_name)
        return outcomes.failures

    @staticmethod
    def _call(case: Case, output: Path, job: "_Job") -> tuple[Any, ...]:
        label = None if case.label is None else str(case.label)
        images = [str(path) for path in case.images]
        return (str(output / case.identifier), images, label, job.plans, job.configuration, job.raw.dataset_json)


class _Job(NamedTuple):
    """What all cases of one run share."""

    plans: NnsslPlansManager
    configuration_name: str
    raw: RawDataset

    @property
    def configuration(self) -> NnsslConfigurationManager:
        return self.plans.get_configuration(self.configuration_name)


def usable_cases(raw: RawDataset, configuration_name: str) -> list[Case]:
    """Cases that passed the check of the fingerprint; `pretrain` also takes cases without a label of a labelled set."""
    bad = load_fingerprint(raw.name).bad_cases
    needs_label = raw.labelled and configuration_name != "pretrain"
    return [case for case in raw.cases if case.identifier not in bad and not (needs_label and case.label is None)]


def copy_labels(raw: RawDataset) -> None:
    """Copy new or changed label maps of usable cases to gt_segmentations, where nnU-Net's validation reads them."""
    folder = preprocessed_folder() / raw.name / "gt_segmentations"
    labels = [(case.identifier, case.label) for case in usable_cases(raw, "pretrain") if case.label is not None]
    if labels:
        folder.mkdir(parents=True, exist_ok=True)
    for identifier, label in labels:
        target = folder / f"{identifier}{raw.dataset_json['file_ending']}"
        if not target.is_file() or target.stat().st_mtime < label.stat().st_mtime:
            shutil.copy2(label, target)
            target.chmod(0o644)
