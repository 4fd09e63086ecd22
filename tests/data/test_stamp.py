"""The stamp tells a plan that would store other volumes from one that would store the same."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnssl.data.stamp import check_stamp, write_stamp
from tests.toy_dataset import PLANS, toy_plans

Change = Callable[[dict[str, Any]], object]
FULL = "3d_fullres"


def checked_after(folder: Path, plans: dict[str, Any], change: Change) -> None:
    write_stamp(folder, plans, FULL)
    changed = copy.deepcopy(plans)
    change(changed)
    check_stamp(folder, changed, FULL)


OTHER_VOLUMES: dict[str, Change] = {
    "spacing": lambda plans: plans["configurations"][FULL].update(spacing=[1.0, 1.0, 1.0]),
    "preprocessor_name": lambda plans: plans["configurations"][FULL].update(preprocessor_name="NnsslPreprocessor"),
    "normalization_schemes": lambda plans: plans["configurations"][FULL].update(normalization_schemes=["NoNorm"]),
    "resampling_fn_data": lambda plans: plans["configurations"][FULL].update(resampling_fn_data="other"),
    "resampling_fn_data_kwargs.order": lambda plans: plans["configurations"][FULL]["resampling_fn_data_kwargs"].update(
        order=1
    ),
    "intensity.high": lambda plans: plans["nnssl"]["intensity"].update(high=400.0),
    "channels.0.mean": lambda plans: plans["foreground_intensity_properties_per_channel"]["0"].update(mean=7.0),
    "transpose_forward": lambda plans: plans.update(transpose_forward=[0, 1, 2]),
}
SAME_VOLUMES: dict[str, Change] = {
    "crop": lambda plans: plans["configurations"][FULL].update(patch_size=[8, 8, 8], batch_size=9),
    "recipe": lambda plans: plans["nnssl"]["finetune"].update(lr=1.0),
    "encoder's range": lambda plans: plans["nnssl"]["intensity"].update(encoder_range=[0.0, 1.0]),
    "other configuration": lambda plans: plans["configurations"]["pretrain"].update(spacing=[3.0, 3.0, 3.0]),
}


@pytest.mark.parametrize("key", OTHER_VOLUMES)
def test_a_plan_that_would_store_other_volumes_is_refused_by_the_key(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match=rf"made by another plan: {key} was .* and is now [^;]*; run") as caught:
        checked_after(tmp_path / "Dataset777_Toy", toy_plans(), OTHER_VOLUMES[key])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", SAME_VOLUMES.values(), ids=SAME_VOLUMES)
def test_a_plan_that_would_store_the_same_volumes_passes(tmp_path: Path, change: Change) -> None:
    checked_after(tmp_path / "Dataset777_Toy", toy_plans(), change)


def test_percentiles_do_not_depend_on_the_intensities_of_the_data_set(tmp_path: Path) -> None:
    plans = toy_plans()
    plans["nnssl"]["intensity"].update(kind="percentile", low=0.05, high=99.95)
    checked_after(tmp_path / "Dataset777_Toy", plans, OTHER_VOLUMES["channels.0.mean"])


def test_a_missing_stamp_names_the_command_for_all_data_sets_planned_together(tmp_path: Path) -> None:
    plans = toy_plans()
    plans["nnssl"]["datasets"] = ["Dataset777_Toy", "Dataset008_Other"]
    plans["configurations"]["pretrain"]["data_identifier"] = "mine_pretrain"
    words = "nnssl_plan_and_preprocess -d 777 8 -e vit_tiny_8 -plans_name mine -c pretrain again"
    with pytest.raises(ValueError, match=words):
        check_stamp(tmp_path / "Dataset777_Toy", plans, "pretrain")
    assert PLANS not in words
