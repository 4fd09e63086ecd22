"""EncoderPlanner: a data set's fingerprint and an encoder become a plans file that stock nnU-Net can read."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIOWithReorient
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet
from numpy.typing import NDArray

from nnssl.config import to_dict
from nnssl.data.fingerprint import Fingerprint, load_fingerprint
from nnssl.data.intake import RawDataset, open_dataset
from nnssl.encoders import encoder_spec
from nnssl.encoders.base import EncoderSpec
from nnssl.geometry import ScanSizes, join_sizes
from nnssl.paths import load_json, preprocessed_folder, raw_folder, save_json
from nnssl.planners.budgets import FinetunePlan, PretrainPlan, plan_finetune, plan_pretrain
from nnssl.planners.crops import Spacing
from nnssl.planners.explain import Decision, finetune_decisions, pretrain_decisions, shared_decisions
from nnssl.transforms.stored_intensity import as_channel_properties

NETWORK = "nnssl.networks.segmentor.EncoderSegmentor"
TRANSPOSE = [2, 1, 0]  # arrays are read as Z Y X; plans, crops and networks speak X Y Z
RESAMPLING = {"force_separate_z": False, "memefficient_seg_resampling": False}  # linear: never leaves [0, 1]
DEFAULT_ENCODER = "vit_small_16"
_OTHER_FILES = ("dataset", "splits_final", "dataset_fingerprint", "nnssl_fingerprint")  # of a preprocessed data set


def default_plans_name(encoder: str) -> str:
    """Name of the plans file of an encoder."""
    return f"nnsslPlans_{encoder}"


class EncoderPlanner(ExperimentPlanner):
    """Plans `3d_fullres` and `pretrain` for one encoder.

    nnU-Net's `plan_experiment_dataset(id, EncoderPlanner)` works; the attributes below are set before
    `plan_experiment` to choose more:

    Attributes:
        spec: the encoder, with its native crop and the intensity range to use.
        intensity_source: where that range comes from, for the table.
        trained: whether pretrained weights exist; then spec.native_crop is theirs, else it becomes the global crop.
        pretrain_plan: of several data sets together; None plans for this one alone.
        decisions: filled by `plan_experiment`.
    """

    def __init__(  # nnU-Net's words; its constructor insists on label files and forks twelve processes to list them
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = "NnsslPreprocessor",
        plans_name: str | None = None,
        overwrite_target_spacing: list[float] | tuple[float, ...] | None = None,
        suppress_transpose: bool = False,
        *,
        spec: EncoderSpec | None = None,
    ) -> None:
        """`overwrite_target_spacing` is Z Y X (mm) as in nnU-Net; `preprocessor_name` follows the intensity instead."""
        self.raw: RawDataset = open_dataset(dataset_name_or_id)
        self.fingerprint: Fingerprint = load_fingerprint(self.raw.name)
        self.spec = spec or encoder_spec(DEFAULT_ENCODER)
        self.intensity_source, self.trained = "the encoder's preset", False
        self.pretrain_plan: PretrainPlan | None = None
        self.decisions: list[Decision] = []
        self.memory_gb = gpu_memory_target_in_gb
        self.plans_identifier = plans_name or default_plans_name(self.spec.name)
        self.overwrite_target_spacing = _checked_spacing(overwrite_target_spacing)
        self.suppress_transpose = suppress_transpose
        self.dataset_name, self.dataset_json = self.raw.name, self.raw.dataset_json
        self.raw_dataset_folder = str(raw_folder() / self.raw.name)
        self.dataset_fingerprint = self.fingerprint.as_stock()
        self.preprocessor_name = preprocessor_name
        self.plans: dict[str, Any] | None = None
        check_plans_name(self.plans_identifier, self.raw.name)

    @property
    def sizes(self) -> ScanSizes:
        """Shapes and spacings of the usable cases, X Y Z."""
        return self.fingerprint.sizes

    def determine_reader_writer(self) -> type[SimpleITKIOWithReorient]:
        """Always the reader that turns scans to RAS."""
        return SimpleITKIOWithReorient

    def determine_transpose(self) -> tuple[list[int], list[int]]:
        """Always to X Y Z."""
        return list(TRANSPOSE), list(TRANSPOSE)

    def determine_fullres_target_spacing(self) -> NDArray[np.float64]:
        """Spacing of 3d_fullres, Z Y X as in nnU-Net."""
        return np.array(self.plan_finetune().geometry.spacing_mm[::-1])

    def determine_resampling(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any], Any, dict[str, Any]]:
        """nnU-Net's torch resampling, linear: nothing overshoots, and many classes stay fast."""
        data, seg = {"is_seg": False, **RESAMPLING}, {"is_seg": True, **RESAMPLING}
        return resample_torch_fornnunet, data, resample_torch_fornnunet, seg

    def determine_segmentation_softmax_export_fn(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """The same for probabilities."""
        return resample_torch_fornnunet, {"is_seg": False, **RESAMPLING}

    def determine_normalization_scheme_and_whether_mask_is_used_for_norm(self) -> tuple[list[str], list[bool]]:
        """One scheme for all channels, by the encoder's intensity range."""
        scheme = "CTNormalization" if self.spec.intensity.kind == "window" else "PercentileNormalization"
        return [scheme] * self.raw.channels, [False] * self.raw.channels

    def plan_finetune(self) -> FinetunePlan:
        """Geometry, batch and recipe of 3d_fullres."""
        spacing = self.overwrite_target_spacing
        return plan_finetune(
            self.spec,
            self.sizes,
            channels=self.raw.channels,
            classes=len(self.dataset_json["labels"]),
            memory_gb=self.memory_gb,
            spacing_mm=None if spacing is None else (spacing[2], spacing[1], spacing[0]),
        )

    def plan_experiment(self) -> dict[str, Any]:
        """Decide, write the plans file and dataset.json to $nnUNet_preprocessed, and return the plans."""
        finetune = self.plan_finetune()
        pretrain = self.pretrain_plan or plan_together([self])
        asked = self.spec
        if not self.trained:
            self.spec = encoder_spec(self.spec.name, pretrain.geometry.global_crop, intensity=self.spec.intensity)
        self.decisions = [
            *shared_decisions(
                self.spec,
                self.intensity_source,
                cases=len(self.fingerprint.shapes),
                bad_cases=len(self.fingerprint.bad_cases),
            ),
            *finetune_decisions(finetune, self.sizes, asked),
            *pretrain_decisions(pretrain),
        ]
        self.plans = self._stock_keys() | {
            "configurations": {
                "3d_fullres": self._finetune_configuration(finetune),
                "pretrain": self._pretrain_configuration(pretrain, finetune.adapter_width),
            },
            "nnssl": self._own_section(finetune, pretrain),
        }
        folder = preprocessed_folder() / self.raw.name
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("dataset.json", "splits_final.json"):
            _copy_if_there(Path(self.raw_dataset_folder) / name, folder / name, keep=name == "splits_final.json")
        save_json(self.plans, folder / f"{self.plans_identifier}.json")
        return self.plans

    def _stock_keys(self) -> dict[str, Any]:
        intensity = self.spec.intensity
        properties: dict[str, Any] = self.fingerprint.intensities
        if intensity.kind == "window":
            properties = as_channel_properties([(intensity.low, intensity.high)] * self.raw.channels)
        sizes = self.sizes
        return {
            "dataset_name": self.raw.name,
            "plans_name": self.plans_identifier,
            "original_median_spacing_after_transp": np.median(sizes.spacings, axis=0).tolist(),
            "original_median_shape_after_transp": np.rint(np.median(sizes.shapes, axis=0)).astype(int).tolist(),
            "image_reader_writer": self.determine_reader_writer().__name__,
            "transpose_forward": list(TRANSPOSE),
            "transpose_backward": list(TRANSPOSE),
            "experiment_planner_used": type(self).__name__,
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": properties,
        }

    def _finetune_configuration(self, plan: FinetunePlan) -> dict[str, Any]:
        geometry = plan.geometry
        return self._configuration("3d_fullres", geometry.spacing_mm, geometry.median_shape, plan.adapter_width) | {
            "batch_size": plan.batch_size,
            "patch_size": list(geometry.crop),
        }

    def _pretrain_configuration(self, plan: PretrainPlan, adapter_width: int) -> dict[str, Any]:
        geometry = plan.geometry
        return self._configuration("pretrain", geometry.spacing_mm, geometry.median_shape, adapter_width) | {
            "batch_size": plan.recipe.batch_size,
            "patch_size": list(geometry.global_crop),
        }

    def _configuration(
        self, name: str, spacing_mm: Spacing, median_shape: tuple[float, ...], adapter_width: int
    ) -> dict[str, Any]:
        """The stock keys of a configuration without batch and crop."""
        data, data_words, seg, seg_words = self.determine_resampling()
        probabilities, probabilities_words = self.determine_segmentation_softmax_export_fn()
        schemes, masks = self.determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        window = self.spec.intensity.kind == "window"
        return {
            "data_identifier": self.generate_data_identifier(name),
            "preprocessor_name": "DefaultPreprocessor" if window else "NnsslPreprocessor",
            "median_image_size_in_voxels": list(median_shape),
            "spacing": list(spacing_mm),
            "normalization_schemes": schemes,
            "use_mask_for_norm": masks,
            "resampling_fn_data": data.__name__,
            "resampling_fn_seg": seg.__name__,
            "resampling_fn_data_kwargs": data_words,
            "resampling_fn_seg_kwargs": seg_words,
            "resampling_fn_probabilities": probabilities.__name__,
            "resampling_fn_probabilities_kwargs": probabilities_words,
            "batch_dice": False,
            "architecture": self._architecture(adapter_width),
        }

    def _architecture(self, adapter_width: int) -> dict[str, Any]:
        words = {
            "encoder": self.spec.name,
            "decoder": "unet",
            "native_crop": list(self.spec.native_crop),
            "encoder_range": list(self.spec.intensity.encoder_range),
            "adapter_width": adapter_width,
            "frozen": True,
            "precision": "auto",
        }
        return {"network_class_name": NETWORK, "arch_kwargs": words, "_kw_requires_import": []}

    def _own_section(self, finetune: FinetunePlan, pretrain: PretrainPlan) -> dict[str, Any]:
        return {
            "version": 1,
            "encoder": self.spec.name,
            "native_crop": list(self.spec.native_crop),
            "intensity": to_dict(self.spec.intensity),
            "orientation": "RAS",
            "axes": "XYZ",
            "decisions": [to_dict(decision) for decision in self.decisions],
            "finetune": to_dict(finetune.recipe),
            "pretrain": to_dict(pretrain.recipe),
            "datasets": list(pretrain.datasets),
        }


def plan_together(planners: list[EncoderPlanner]) -> PretrainPlan:
    """One pretrain configuration over the union of several data sets; every case counts once."""
    first = planners[0]
    return plan_pretrain(
        first.spec,
        join_sizes([planner.sizes for planner in planners]),
        images=sum(len(planner.fingerprint.shapes) * planner.raw.channels for planner in planners),
        datasets=tuple(planner.raw.name for planner in planners),
        memory_gb=first.memory_gb,
    )


def check_plans_name(name: str, dataset: str) -> None:
    """Refuse a plans name that cannot be part of folder names, or whose file belongs to someone else."""
    if "__" in name or "/" in name or not name:
        raise ValueError(f"plans name {name!r}: it names a file and result folders, so no '__' and no '/' is allowed")
    if name in _OTHER_FILES or name.endswith(".stamp"):
        raise ValueError(f"plans name {name!r}: {name}.json is another file of the data set; give another -plans_name")
    file = preprocessed_folder() / dataset / f"{name}.json"
    present = load_json(file) if file.is_file() else {"nnssl": {}}
    if not isinstance(present, dict) or "nnssl" not in present:
        raise ValueError(
            f"plans name {name!r}: {file} exists and is no plan of nnssl (no 'nnssl' section), so it is not "
            "overwritten; give another -plans_name"
        )


def _checked_spacing(spacing_mm: list[float] | tuple[float, ...] | None) -> list[float] | None:
    if spacing_mm is None:
        return None
    if len(spacing_mm) != 3 or not all(np.isfinite(value) and value > 0 for value in spacing_mm):
        raise ValueError(f"target spacing {list(spacing_mm)}: give three values above 0 in mm")
    return [float(value) for value in spacing_mm]


def _copy_if_there(source: Path, target: Path, *, keep: bool) -> None:
    """Copy a file; `keep` leaves an existing target as it is."""
    if source.is_file() and not (keep and target.is_file()):
        shutil.copyfile(source, target)
