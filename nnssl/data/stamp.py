"""The stamp beside stored volumes: it appears when preprocessing has finished and holds what the volumes depend on."""

from pathlib import Path
from typing import Any

from nnssl.config import flattened
from nnssl.data.stored_shape import DEPTH_KEY, DTYPE_KEY, LIMIT_KEY, SMOOTH_KEY
from nnssl.paths import STAMP_ENDING, dataset_id, load_json, save_json

_PLANS_KEYS = ("image_reader_writer", "transpose_forward")
_CONFIGURATION_KEYS = (
    "spacing",
    "preprocessor_name",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
    LIMIT_KEY,
    DEPTH_KEY,
    DTYPE_KEY,
    SMOOTH_KEY,
)
_INTENSITY_KEYS = ("kind", "low", "high")  # encoder_range acts in the network; stored volumes are always in [0, 1]


def write_stamp(dataset_folder: Path, plans: dict[str, Any], configuration: str) -> None:
    """Say that the volumes of a configuration are complete, and by which plan they were made."""
    save_json(what_volumes_depend_on(plans, configuration), _stamp_file(dataset_folder, plans, configuration))


def remove_stamp(dataset_folder: Path, plans: dict[str, Any], configuration: str) -> None:
    """Say that the volumes of a configuration are about to change."""
    _stamp_file(dataset_folder, plans, configuration).unlink(missing_ok=True)


def check_stamp(dataset_folder: Path, plans: dict[str, Any], configuration: str) -> None:
    """Refuse stored volumes that are incomplete or that were made by another plan than this one.

    Args:
        dataset_folder: `$nnUNet_preprocessed/DatasetNNN_Name`.

    Raises:
        ValueError: there is no stamp, or it differs from the plan; the message says in what and which command to run.
    """
    file = _stamp_file(dataset_folder, plans, configuration)
    about = f"stored volumes of {dataset_folder.name} {configuration}"
    again = f"run {_command(dataset_folder, plans, configuration)} again, with its other options if it had any"
    if not file.is_file():
        raise ValueError(f"{about}: preprocessing did not finish (there is no {file}); {again}")
    stored, planned = flattened(load_json(file)), flattened(what_volumes_depend_on(plans, configuration))
    differing = [
        f"{key} was {stored.get(key)} and is now {planned.get(key)}"
        for key in stored | planned
        if stored.get(key) != planned.get(key)
    ]
    if differing:
        raise ValueError(f"{about}: they were made by another plan: {'; '.join(differing)}; {again}")


def what_volumes_depend_on(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """The entries of a plans file that decide what is stored for a configuration."""
    chosen, intensity = plans["configurations"][configuration], plans.get("nnssl", {}).get("intensity", {})
    values = {key: plans.get(key) for key in _PLANS_KEYS}
    values |= {key: chosen.get(key) for key in _CONFIGURATION_KEYS}
    values["intensity"] = {key: intensity.get(key) for key in _INTENSITY_KEYS}
    if intensity.get("kind") != "percentile":  # percentiles are each image's own, not those of the data set
        values["channels"] = plans.get("foreground_intensity_properties_per_channel")
    return values


def _stamp_file(dataset_folder: Path, plans: dict[str, Any], configuration: str) -> Path:
    return dataset_folder / f"{plans['configurations'][configuration]['data_identifier']}{STAMP_ENDING}"


def _command(dataset_folder: Path, plans: dict[str, Any], configuration: str) -> str:
    """The command that stores the volumes of this plan; `pretrain` is planned over several data sets at once."""
    own, section = dataset_folder.name, plans.get("nnssl", {})
    datasets = section.get("datasets") or [own] if configuration == "pretrain" else [own]
    encoder = section.get("encoder", "ENCODER")
    name = plans["configurations"][configuration]["data_identifier"].removesuffix(f"_{configuration}")
    plans_name = "" if name == f"nnsslPlans_{encoder}" else f" -plans_name {name}"
    numbers = " ".join(str(dataset_id(dataset)) for dataset in datasets)
    return f"nnssl_plan_and_preprocess -d {numbers} -e {encoder}{plans_name} -c {configuration}"
