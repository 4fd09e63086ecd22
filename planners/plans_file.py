"""The plans file: what was decided, in the words of nnU-Net's plans and in the "nnssl" section."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIOWithReorient
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet

from nnssl.config import to_dict
from nnssl.data.fingerprint import Fingerprint
from nnssl.data.preprocessing import PERCENTILE_SCHEME
from nnssl.data.stored_shape import DEPTH_KEY, DTYPE_KEY, LIMIT_KEY, SMOOTH_KEY
from nnssl.encoders.base import EncoderSpec, IntensityRange
from nnssl.planners.budgets import FinetunePlan, PretrainPlan
from nnssl.planners.crops import Spacing
from nnssl.planners.explain import Decision
from nnssl.transforms.stored_intensity import as_channel_properties

NETWORK = "nnssl.networks.segmentor.EncoderSegmentor"
TRANSPOSE = [2, 1, 0]  # arrays are read as Z Y X; plans, crops and networks speak X Y Z
LINEAR = {"force_separate_z": False, "memefficient_seg_resampling": False}
CUBIC = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": False}
STORED_DTYPE = "float16"  # of pretrain; nnU-Net's loader would take integers as raw values
Resampling = tuple[Callable[..., Any], dict[str, Any], Callable[..., Any], dict[str, Any]]


@dataclass(frozen=True)
class Planned:
    """All that goes into one plans file."""

    dataset: str
    plans_name: str
    planner: str  # class name
    spec: EncoderSpec  # with the native crop and intensity that the encoder has or will have
    finetune: FinetunePlan
    pretrain: PretrainPlan
    fingerprint: Fingerprint
    decisions: Sequence[Decision]
    recipe_name: str | None = None
    encoder_intensity: IntensityRange | None = None  # what the encoder saw, where it differs from spec.intensity


def resampling() -> Resampling:
    """nnU-Net's cubic resampling for images and its linear torch resampling for label maps.

    Names that stock nnU-Net knows, so that its own prediction sees the same images; `nnssl.data.resampling` computes
    them many times faster.
    """
    return resample_data_or_seg_to_shape, dict(CUBIC), resample_torch_fornnunet, {"is_seg": True, **LINEAR}


def export_resampling() -> tuple[Callable[..., Any], dict[str, Any]]:
    """nnU-Net's torch resampling for probabilities, linear: many classes stay fast."""
    return resample_torch_fornnunet, {"is_seg": False, **LINEAR}


def storage(pretrain: PretrainPlan) -> dict[str, Any]:
    """What only `pretrain` has: half precision, and where views are resized a limit, smoothed towards it."""
    limit = pretrain.geometry.limit
    keys: dict[str, Any] = {DTYPE_KEY: STORED_DTYPE, SMOOTH_KEY: True}
    return keys if limit is None else keys | {LIMIT_KEY: list(limit.voxels), DEPTH_KEY: limit.depth_axis}


def intensity_scheme(spec: EncoderSpec) -> str:
    """nnU-Net's scheme where it has one: its CTNormalization maps any window to [0, 1]."""
    return "CTNormalization" if spec.intensity.kind == "window" else PERCENTILE_SCHEME


def plans_content(planned: Planned) -> dict[str, Any]:
    """The content of a plans file that stock nnU-Net can read."""
    finetune, pretrain = planned.finetune, planned.pretrain
    configurations = {
        "3d_fullres": _configuration(
            planned, "3d_fullres", finetune.geometry.spacing_mm, finetune.geometry.median_shape
        )
        | {"batch_size": finetune.batch_size, "patch_size": list(finetune.geometry.crop)},
        "pretrain": _configuration(planned, "pretrain", pretrain.geometry.spacing_mm, pretrain.geometry.median_shape)
        | {"batch_size": pretrain.recipe.batch_size, "patch_size": list(pretrain.geometry.global_crop)}
        | storage(pretrain),
    }
    return _stock_keys(planned) | {"configurations": configurations, "nnssl": _own_section(planned)}


def _stock_keys(planned: Planned) -> dict[str, Any]:
    intensity, sizes = planned.spec.intensity, planned.fingerprint.sizes
    properties: dict[str, Any] = planned.fingerprint.intensities
    if intensity.kind == "window":
        channels = planned.finetune.network.input_channels
        properties = as_channel_properties([(intensity.low, intensity.high)] * channels)
    return {
        "dataset_name": planned.dataset,
        "plans_name": planned.plans_name,
        "original_median_spacing_after_transp": np.median(sizes.spacings, axis=0).tolist(),
        "original_median_shape_after_transp": np.rint(np.median(sizes.shapes, axis=0)).astype(int).tolist(),
        "image_reader_writer": SimpleITKIOWithReorient.__name__,
        "transpose_forward": list(TRANSPOSE),
        "transpose_backward": list(TRANSPOSE),
        "experiment_planner_used": planned.planner,
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": properties,
    }


def _configuration(planned: Planned, name: str, spacing_mm: Spacing, median_shape: tuple[float, ...]) -> dict[str, Any]:
    """The stock keys of a configuration without batch and crop."""
    data, data_words, seg, seg_words = resampling()
    export, export_words = export_resampling()
    network, spec = planned.finetune.network, planned.spec
    return {
        "data_identifier": f"{planned.plans_name}_{name}",
        "preprocessor_name": "DefaultPreprocessor" if spec.intensity.kind == "window" else "NnsslPreprocessor",
        "median_image_size_in_voxels": list(median_shape),
        "spacing": list(spacing_mm),
        "normalization_schemes": [intensity_scheme(spec)] * network.input_channels,
        "use_mask_for_norm": [False] * network.input_channels,
        "resampling_fn_data": data.__name__,
        "resampling_fn_seg": seg.__name__,
        "resampling_fn_data_kwargs": data_words,
        "resampling_fn_seg_kwargs": seg_words,
        "resampling_fn_probabilities": export.__name__,
        "resampling_fn_probabilities_kwargs": export_words,
        "batch_dice": False,
        "architecture": {
            "network_class_name": NETWORK,
            "arch_kwargs": network.arch_kwargs(spec),
            "_kw_requires_import": [],
        },
    }


def _own_section(planned: Planned) -> dict[str, Any]:
    spec = planned.spec
    return {
        "version": 1,
        "encoder": spec.name,
        "encoder_options": dict(spec.options),
        "native_crop": list(spec.native_crop),
        "intensity": to_dict(spec.intensity),
        "encoder_intensity": None if planned.encoder_intensity is None else to_dict(planned.encoder_intensity),
        "orientation": "RAS",
        "axes": "XYZ",
        "recipe": planned.recipe_name,
        "decisions": [to_dict(decision) for decision in planned.decisions],
        "finetune": to_dict(planned.finetune.recipe),
        "pretrain": to_dict(planned.pretrain.recipe),
        "datasets": list(planned.pretrain.datasets),
    }
