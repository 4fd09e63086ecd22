"""EncoderPlanner: a data set's fingerprint and an encoder become a plans file that stock nnU-Net can read."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIOWithReorient
from numpy.typing import NDArray

from nnssl.data.fingerprint import Fingerprint, load_fingerprint
from nnssl.data.intake import RawDataset, open_dataset
from nnssl.encoders import encoder_spec
from nnssl.encoders.base import EncoderSpec
from nnssl.geometry import ScanSizes, join_sizes
from nnssl.networks import CHANNEL_RULES
from nnssl.paths import load_json, preprocessed_folder, raw_folder, save_json
from nnssl.planners.budgets import FinetunePlan, PretrainPlan, plan_finetune, plan_pretrain
from nnssl.planners.explain import Decision, finetune_decisions, network_decisions, pretrain_decisions, shared_decisions
from nnssl.planners.intensity import IntensityChoice
from nnssl.planners.network import NetworkPlan, choose_network
from nnssl.planners.plans_file import (
    TRANSPOSE,
    Planned,
    Resampling,
    export_resampling,
    intensity_scheme,
    plans_content,
    resampling,
)
from nnssl.recipe import RECIPES, Preset

DEFAULT_ENCODER = "vit_small_16"
RECIPE_ENCODERS = {"smit_many": "smit_96", "smit_few": "smit_96"}  # others: DEFAULT_ENCODER
_OTHER_FILES = ("dataset", "splits_final", "dataset_fingerprint", "nnssl_fingerprint")  # of a preprocessed data set


@dataclass(frozen=True)
class Wishes:
    """What was asked for beside encoder, memory and spacing; None is the recipe's, or else the encoder's own."""

    recipe: str | None = None  # a name of nnssl.recipe.RECIPES
    decoder: str | None = None  # a name of nnssl.networks.DECODERS
    channels: str | None = None  # one of nnssl.planners.network.CHANNEL_RULES

    def __post_init__(self) -> None:
        if self.recipe is not None and self.recipe not in RECIPES:
            raise ValueError(f"recipe {self.recipe!r} is unknown; known recipes: {', '.join(RECIPES)}")
        if self.channels is not None and self.channels not in CHANNEL_RULES:
            raise ValueError(f"channel rule {self.channels!r} is unknown; known rules: {', '.join(CHANNEL_RULES)}")

    @property
    def preset(self) -> Preset | None:
        """The recipe itself."""
        return None if self.recipe is None else RECIPES[self.recipe]


def default_plans_name(encoder: str, recipe: str | None = None) -> str:
    """Name of the plans file of an encoder; a recipe's does not replace the one that the encoder is pretrained with."""
    return f"nnsslPlans_{encoder}" if recipe is None else f"nnsslPlans_{encoder}_{recipe}"


class EncoderPlanner(ExperimentPlanner):
    """Plans `3d_fullres` and `pretrain` for one encoder.

    nnU-Net's `plan_experiment_dataset(id, EncoderPlanner)` works; the attributes below are set before
    `plan_experiment` to choose more:

    Attributes:
        spec: the encoder, with its native crop and the intensity range to use.
        wishes: recipe, decoder and rule for several image channels.
        intensity: the rule with its reason; that of `spec` holds, and the reason goes into the table.
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
        wishes: Wishes | None = None,
    ) -> None:
        """`overwrite_target_spacing` is Z Y X (mm) as in nnU-Net; `preprocessor_name` follows the intensity instead."""
        self.raw: RawDataset = open_dataset(dataset_name_or_id)
        self.fingerprint: Fingerprint = load_fingerprint(self.raw.name)
        self.spec = spec or encoder_spec(DEFAULT_ENCODER)
        self.wishes = wishes or Wishes()
        self.intensity = IntensityChoice(self.spec.intensity, "the encoder's preset")
        self.trained = False
        self.pretrain_plan: PretrainPlan | None = None
        self.decisions: list[Decision] = []
        self.memory_gb = gpu_memory_target_in_gb
        self.plans_identifier = plans_name or default_plans_name(self.spec.name, self.wishes.recipe)
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

    def determine_resampling(self, *args: Any, **kwargs: Any) -> Resampling:
        """See `resampling`."""
        return resampling()

    def determine_segmentation_softmax_export_fn(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """The same for probabilities."""
        return export_resampling()

    def determine_normalization_scheme_and_whether_mask_is_used_for_norm(self) -> tuple[list[str], list[bool]]:
        """One scheme for all channels, by the encoder's intensity range."""
        return [intensity_scheme(self.spec)] * self.raw.channels, [False] * self.raw.channels

    def plan_network(self) -> NetworkPlan:
        """The segmentor of 3d_fullres."""
        return choose_network(
            self.spec,
            input_channels=self.raw.channels,
            num_classes=len([name for name in self.dataset_json["labels"] if name != "ignore"]),
            decoder=self.wishes.decoder,
            channels=self.wishes.channels,
            recipe=self.wishes.preset,
        )

    def plan_finetune(self) -> FinetunePlan:
        """Network, geometry, batch and recipe of 3d_fullres."""
        spacing = self.overwrite_target_spacing
        return plan_finetune(
            self.plan_network(),
            self.sizes,
            memory_gb=self.memory_gb,
            spacing_mm=None if spacing is None else (spacing[2], spacing[1], spacing[0]),
            recipe=self.wishes.preset,
        )

    def plan_experiment(self) -> dict[str, Any]:
        """Decide, write the plans file and dataset.json to $nnUNet_preprocessed, and return the plans."""
        finetune = self.plan_finetune()
        pretrain = self.pretrain_plan or plan_together([self])
        asked, recipe = self.spec, self.wishes.preset
        if not self.trained:
            self.spec = _with_native_crop(self.spec, pretrain)
        self.decisions = [
            *shared_decisions(
                self.spec,
                self.intensity,
                cases=len(self.fingerprint.shapes),
                bad_cases=len(self.fingerprint.bad_cases),
            ),
            *finetune_decisions(finetune, self.sizes, asked, recipe),
            *network_decisions(finetune.network, self.wishes.decoder, self.wishes.channels, recipe),
            *pretrain_decisions(pretrain, asked),
        ]
        self.plans = plans_content(
            Planned(
                self.raw.name,
                self.plans_identifier,
                type(self).__name__,
                self.spec,
                finetune,
                pretrain,
                self.fingerprint,
                self.decisions,
                self.wishes.recipe,
                self.intensity.encoder,
            )
        )
        folder = preprocessed_folder() / self.raw.name
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("dataset.json", "splits_final.json"):
            _copy_if_there(Path(self.raw_dataset_folder) / name, folder / name, keep=name == "splits_final.json")
        save_json(self.plans, folder / f"{self.plans_identifier}.json")
        return self.plans


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


def _with_native_crop(spec: EncoderSpec, pretrain: PretrainPlan) -> EncoderSpec:
    """An encoder that is yet to be pretrained: its native crop will be the global crop."""
    crop = pretrain.geometry.global_crop
    return encoder_spec(spec.name, crop, intensity=spec.intensity, options=spec.options)


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
