"""nnU-Net's sliding-window predictor for models of nnssl: every intensity scheme, also in worker processes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

from nnssl.inference.checkpoint import load_network, read_checkpoint
from nnssl.inference.output_folder import PublishingPlans
from nnssl.paths import load_json

OUR_NETWORKS = "nnssl.networks."  # the only classes that a plans file may name


class NnsslPredictor(nnUNetPredictor):
    """nnU-Net's predictor; its plans manager is ours, so that spawned workers import our preprocessing.

    `step_size` is a fraction of the crop; None takes the model's recipe (3DINO overlaps by 0.75, SMIT by 0.5).
    """

    def __init__(
        self, device: torch.device, *, step_size: float | None = 0.5, mirroring: bool = True, progress: bool = True
    ) -> None:
        if step_size is not None and not 0 < step_size <= 1:
            raise ValueError(f"-step_size {step_size:g}: must be above 0 and at most 1 (a fraction of the crop)")
        self.given_step_size = step_size
        super().__init__(
            tile_step_size=step_size or 0.5,
            use_mirroring=mirroring,
            perform_everything_on_device=device.type == "cuda",
            device=device,
            allow_tqdm=progress,
        )

    def initialize_from_trained_model_folder(
        self,
        model_training_output_dir: str,
        use_folds: Sequence[int | str] | None,
        checkpoint_name: str = "checkpoint_final.pth",
    ) -> None:
        """Read plans, dataset.json and the folds' checkpoints of a model folder; no Python object in them is run.

        Args:
            use_folds: folds to average; None: all that hold the checkpoint.
        """
        folder = Path(model_training_output_dir)
        plans, dataset_json = read_model_folder(folder)
        self.tile_step_size = self.given_step_size or planned_step_size(plans)
        folds = use_folds or available_folds(folder, checkpoint_name)
        checkpoints = [read_checkpoint(folder / f"fold_{fold}" / checkpoint_name) for fold in folds]
        manager = PublishingPlans(plans, dataset_json["file_ending"])
        configuration = manager.get_configuration(checkpoints[0]["init_args"]["configuration"])
        _check_network_name(folder, configuration.network_arch_class_name)
        network = nnUNetTrainer.build_network_architecture(
            manager,
            configuration,
            determine_num_input_channels(manager, configuration, dataset_json),
            manager.get_label_manager(dataset_json).num_segmentation_heads,
            enable_deep_supervision=False,
        )
        parameters = [checkpoint["network_weights"] for checkpoint in checkpoints]
        _load(network, parameters, folder)
        self.manual_initialization(
            network,
            manager,
            configuration,
            parameters,
            dataset_json,
            checkpoints[0]["trainer_name"],
            checkpoints[0]["inference_allowed_mirroring_axes"],
        )


def read_model_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(plans, dataset.json) of a trained model.

    Raises:
        FileNotFoundError: no such model; the message lists the models beside it.
    """
    missing = [name for name in ("plans.json", "dataset.json") if not (folder / name).is_file()]
    if missing:
        known = sorted(path.parent.name for path in folder.parent.glob("*__*__*/plans.json"))
        raise FileNotFoundError(
            f"model folder {folder}: {' and '.join(missing)} missing; models beside it: {', '.join(known) or 'none'}; "
            "check -d, -p, -run, -c and -tr, or train with nnssl_train"
        )
    return load_json(folder / "plans.json"), load_json(folder / "dataset.json")


def planned_step_size(plans: Mapping[str, Any]) -> float:
    """Step between neighbouring crops as a fraction of their side, from the overlap in the model's recipe."""
    return 1 - float(plans.get("nnssl", {}).get("finetune", {}).get("inference_overlap", 0.5))


def available_folds(folder: Path, checkpoint_name: str) -> list[int | str]:
    """Folds that hold the checkpoint; fold "all" only where there is no other."""
    found = [path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint_name}")]
    numbers: list[int | str] = sorted(int(fold) for fold in found if fold.isdigit())
    if not found:
        raise FileNotFoundError(f"model folder {folder}: no fold holds {checkpoint_name}; train first, or give -chk")
    return numbers or ["all"]


def _check_network_name(folder: Path, name: str) -> None:
    if not name.startswith(OUR_NETWORKS):
        raise ValueError(f"model folder {folder}: its network {name} is not one of nnssl; use nnUNetv2_predict")


def _load(network: torch.nn.Module, parameters: Sequence[dict[str, torch.Tensor]], folder: Path) -> None:
    """Load every fold once, the first last, so that a fold that does not fit is found before any prediction."""
    for weights in reversed(parameters):
        load_network(network, weights, where=f"model folder {folder}", advice="restore its plans.json and dataset.json")
