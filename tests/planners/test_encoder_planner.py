"""Plans files: what stock nnU-Net reads from them, the union of data sets, axes, weights, decisions."""

import json
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnssl.config import from_dict
from nnssl.data.fingerprint import fingerprint
from nnssl.data.intake import open_dataset
from nnssl.encoders import encoder_spec
from nnssl.encoders.base import IntensityRange
from nnssl.planners.encoder_planner import EncoderPlanner, Wishes, plan_together
from nnssl.recipe import FineTuneRecipe, PretrainRecipe
from tests.data.raw_scans import reorient, use_folders, write_dataset

STOCK_KEYS = """data_identifier preprocessor_name batch_size patch_size median_image_size_in_voxels spacing
normalization_schemes use_mask_for_norm resampling_fn_data resampling_fn_data_kwargs resampling_fn_seg
resampling_fn_seg_kwargs resampling_fn_probabilities resampling_fn_probabilities_kwargs batch_dice architecture"""


def planner(name: str, encoder: str = "vit_tiny_8") -> EncoderPlanner:
    fingerprint(open_dataset(name), processes=1)
    return EncoderPlanner(name, spec=encoder_spec(encoder))


def test_stock_nnunet_plans_with_it_and_reads_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob")
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    fingerprint(open_dataset(901), processes=1)
    plans, name = plan_experiment_dataset(901, EncoderPlanner, gpu_memory_target_in_gb=8)
    assert name == "nnsslPlans_vit_small_16"
    manager = PlansManager(str(tmp_path / "nnUNet_preprocessed/Dataset901_Blob" / f"{name}.json"))
    assert manager.image_reader_writer_class.__name__ == "SimpleITKIOWithReorient"
    assert (manager.transpose_forward, manager.transpose_backward) == ([2, 1, 0], [2, 1, 0])
    for name in ("3d_fullres", "pretrain"):
        assert set(STOCK_KEYS.split()) <= set(plans["configurations"][name])
        configuration = manager.get_configuration(name)
        assert configuration.resampling_fn_data.func.__name__ == "resample_data_or_seg_to_shape"
        assert configuration.resampling_fn_probabilities.func.__name__ == "resample_torch_fornnunet"
        assert configuration.network_arch_init_kwargs["encoder"] == "vit_small_16"
    assert manager.get_label_manager({"labels": {"background": 0, "blob": 1}}).num_segmentation_heads == 2


def test_recipes_and_native_crop_can_be_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob")
    plans = planner("Dataset901_Blob").plan_experiment()
    own, pretrain = plans["nnssl"], plans["configurations"]["pretrain"]
    recipe = from_dict(PretrainRecipe, own["pretrain"])
    assert from_dict(FineTuneRecipe, own["finetune"]) == FineTuneRecipe()
    assert list(recipe.global_crop) == pretrain["patch_size"] == own["native_crop"]
    assert recipe.batch_size == pretrain["batch_size"]
    assert pretrain["architecture"]["arch_kwargs"]["native_crop"] == own["native_crop"]


def test_the_crop_of_pretrained_weights_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob")
    fingerprint(open_dataset(901), processes=1)
    planned = EncoderPlanner(901, spec=encoder_spec("vit_tiny_8", (40, 48, 32)))
    planned.trained = True
    assert planned.plan_experiment()["nnssl"]["native_crop"] == [40, 48, 32]


def test_pretraining_is_planned_once_over_the_union(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = use_folders(tmp_path, monkeypatch)
    write_dataset(raw, "Dataset901_Blob")
    write_dataset(raw, "Dataset902_Bare", cases=3, labelled=False, seed=1)
    planners = [planner("Dataset901_Blob"), planner("Dataset902_Bare")]
    together = plan_together(planners)
    results = []
    for each in planners:
        each.pretrain_plan = together
        results.append(each.plan_experiment())
    first, second = results
    assert first["nnssl"]["datasets"] == second["nnssl"]["datasets"] == ["Dataset901_Blob", "Dataset902_Bare"]
    assert first["configurations"]["pretrain"] == second["configurations"]["pretrain"]
    assert first["nnssl"]["pretrain"] == second["nnssl"]["pretrain"]
    assert together.images == 7


def test_permuted_and_flipped_files_give_the_same_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = use_folders(tmp_path, monkeypatch)
    folder = write_dataset(raw, "Dataset901_Blob")
    for index, orientation in enumerate(("LSP", "SAR", "PIL", "RAI")):
        for name in (f"imagesTr/case_{index}_0000.nii.gz", f"labelsTr/case_{index}.nii.gz"):
            reorient(folder / name, raw / "Dataset902_Turned" / name, orientation)
    (raw / "Dataset902_Turned" / "dataset.json").write_text((folder / "dataset.json").read_text())
    straight, turned = (planner(name).plan_experiment() for name in ("Dataset901_Blob", "Dataset902_Turned"))
    assert comparable(turned) == comparable(straight)


def comparable(plans: dict[str, Any]) -> dict[str, Any]:
    """Plans without the name of the data set and the voxel order in which intensities were sampled."""
    text = json.dumps(plans).replace("Dataset902_Turned", "Dataset901_Blob")
    return json.loads(text) | {"foreground_intensity_properties_per_channel": None}


def test_every_decision_is_kept_with_its_reason_and_names_no_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob")
    plans = planner("Dataset901_Blob").plan_experiment()
    decisions = plans["nnssl"]["decisions"]
    assert all(decision["why"] and decision["value"] for decision in decisions)
    assert {"spacing [mm]", "crop [voxels]", "padding", "batch", "intensity"} <= {row["what"] for row in decisions}
    text = json.dumps(plans)
    assert "case_0" not in text
    assert str(tmp_path) not in text


def test_spacing_given_in_nnunets_order_is_stored_in_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob")
    fingerprint(open_dataset(901), processes=1)
    planned = EncoderPlanner(901, spec=encoder_spec("vit_tiny_8"), overwrite_target_spacing=[2.0, 1.5, 1.0])
    assert planned.plan_experiment()["configurations"]["3d_fullres"]["spacing"] == [1.0, 1.5, 2.0]
    assert planned.determine_fullres_target_spacing().tolist() == [2.0, 1.5, 1.0]


@pytest.mark.parametrize(
    "name", ["a__b", "a/b", "dataset", "dataset_fingerprint", "nnssl_fingerprint", "splits_final", "a.stamp"]
)
def test_plans_names_that_break_folder_names_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob", cases=1)
    fingerprint(open_dataset(901), processes=1)
    with pytest.raises(ValueError, match="plans name"):
        EncoderPlanner(901, plans_name=name)


def test_plans_of_another_planner_are_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob", cases=1)
    fingerprint(open_dataset(901), processes=1)
    file = tmp_path / "nnUNet_preprocessed/Dataset901_Blob/nnUNetPlans.json"
    file.write_text('{"plans_name": "nnUNetPlans", "configurations": {}}')
    with pytest.raises(ValueError, match=r"'nnUNetPlans'.* no plan of nnssl"):
        EncoderPlanner(901, plans_name="nnUNetPlans")
    for _ in range(2):  # our own file is replaced
        EncoderPlanner(901, plans_name="mine", spec=encoder_spec("vit_tiny_8")).plan_experiment()


def test_planning_without_a_fingerprint_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob", cases=1)
    with pytest.raises(FileNotFoundError, match="run nnssl_plan_and_preprocess -d Dataset901_Blob"):
        EncoderPlanner(901)


def test_weights_of_a_swin_with_options_are_planned_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob")
    fingerprint(open_dataset(901), processes=1)
    options = {"depths": [2, 2, 12, 2], "qkv_bias": True, "window_reverse": "legacy"}
    intensity = IntensityRange("window", -175.0, 250.0, (0.0, 1.0))
    planned = EncoderPlanner(901, spec=encoder_spec("smit_128", intensity=intensity, options=options))
    planned.trained = True
    plans = planned.plan_experiment()
    words = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert words["encoder_options"] == plans["nnssl"]["encoder_options"] == options
    assert words["native_crop"] == [128, 128, 128]
    assert (words["encoder_range"], words["decoder"]) == ([0.0, 1.0], "swin_unetr")
    assert plans["configurations"]["3d_fullres"]["normalization_schemes"] == ["CTNormalization"]
    reasons = {row["what"]: row["why"] for row in plans["nnssl"]["decisions"]}
    assert "depths [2, 2, 12, 2]" in reasons["encoder"]


def test_options_stay_when_the_crop_of_an_encoder_yet_to_be_pretrained_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob")
    fingerprint(open_dataset(901), processes=1)
    plans = EncoderPlanner(901, spec=encoder_spec("swin_tiny", options={"window": 2})).plan_experiment()
    assert plans["nnssl"]["encoder_options"] == {"window": 2}
    assert plans["nnssl"]["native_crop"] == plans["nnssl"]["pretrain"]["global_crop"]
    assert all(side % 32 == 0 for side in plans["nnssl"]["native_crop"])


def test_a_recipe_is_written_into_the_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob")
    fingerprint(open_dataset(901), processes=1)
    planned = EncoderPlanner(901, 24, spec=encoder_spec("swin_tiny"), wishes=Wishes("smit_few"))
    plans = planned.plan_experiment()
    recipe = from_dict(FineTuneRecipe, plans["nnssl"]["finetune"])
    assert plans["nnssl"]["recipe"] == "smit_few"
    assert (recipe.epochs, recipe.lr, recipe.loss) == (3000, 2e-4, "bce_dice")  # one foreground label
    words = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert (words["decoder"], words["norm"], words["frozen"]) == ("swin_unetr", "batch", False)
    assert plans["configurations"]["3d_fullres"]["batch_size"] == 3
    assert plans["plans_name"] == "nnsslPlans_swin_tiny_smit_few"  # beside the plan of the pretraining


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="known recipes: 3dino, smit_many, smit_few"):
        Wishes("smit")
