"""Whose intensity rule holds, by modality."""

import pytest

from nnssl.encoders import encoder_spec
from nnssl.encoders.base import IntensityRange
from nnssl.planners.intensity import choose_intensity, is_ct
from nnssl.recipe import RECIPES

SMIT = encoder_spec("smit_96").intensity
VIT = encoder_spec("vit_small_16").intensity
PERCENTILES = IntensityRange("percentile", 5.0, 95.0, (0.0, 1.0))


def test_only_channels_named_ct_are_ct_as_in_nnunet() -> None:
    assert is_ct(["CT", "ct"])
    assert not is_ct(["CT", "PET"])
    assert not is_ct(["CT_like"])


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        (["CT"], IntensityRange("window", -500.0, 500.0, (0.0, 1.0))),  # SMIT benchmark, pretraining
        (["MRI"], PERCENTILES),
        (["CT", "MRI"], PERCENTILES),
    ],
)
def test_a_swin_sees_its_window_on_ct_and_percentiles_elsewhere(channels: list[str], expected: IntensityRange) -> None:
    assert choose_intensity(SMIT, channels).intensity == expected


def test_a_vit_sees_its_percentiles_on_every_modality() -> None:
    assert choose_intensity(VIT, ["CT"]).intensity == choose_intensity(VIT, ["MRI"]).intensity == VIT


def test_the_flag_beats_the_recipe_and_the_recipe_the_weights() -> None:
    recipe, weights = RECIPES["smit_many"], IntensityRange("window", -1000.0, 1000.0, (0.0, 2.0))
    flag = IntensityRange("window", -200.0, 300.0)
    chosen = choose_intensity(SMIT, ["CT"], flag=flag, recipe=recipe, weights=weights)
    assert chosen.intensity == IntensityRange("window", -200.0, 300.0, (0.0, 2.0))  # the range the weights saw
    by_recipe = choose_intensity(SMIT, ["CT"], recipe=recipe, weights=weights)
    assert by_recipe.intensity == IntensityRange("window", -175.0, 250.0, (0.0, 2.0))
    assert "recipe" in by_recipe.why
    assert choose_intensity(SMIT, ["CT"], recipe=RECIPES["3dino"], weights=weights).intensity == weights
    assert choose_intensity(SMIT, ["MR"], recipe=recipe).intensity == PERCENTILES


def test_hounsfield_units_of_weights_give_way_on_mr_and_other_windows_stay() -> None:
    hounsfield, tumour = (IntensityRange("window", *bounds, (0.0, 1.0)) for bounds in ((-500.0, 500.0), (0.0, 400.0)))
    turned = choose_intensity(VIT, ["T2"], weights=hounsfield)
    assert turned.intensity == PERCENTILES
    assert "Hounsfield" in turned.why
    assert choose_intensity(VIT, ["T2"], weights=tumour).intensity == tumour


def test_what_the_encoder_saw_is_recorded_where_the_plan_differs() -> None:
    recipe, hounsfield = RECIPES["smit_many"], IntensityRange("window", -600.0, 600.0, (0.0, 1.0))
    window = IntensityRange("window", 0.0, 400.0, (0.0, 1.0))
    assert choose_intensity(SMIT, ["CT"], weights=hounsfield).encoder is None
    assert choose_intensity(SMIT, ["MR"], weights=hounsfield).encoder == hounsfield
    assert choose_intensity(SMIT, ["CT"], recipe=recipe, weights=hounsfield).encoder == hounsfield
    assert choose_intensity(SMIT, ["MR"], flag=window, weights=hounsfield).encoder == hounsfield
    assert choose_intensity(SMIT, ["MR"], flag=window, weights=window).encoder is None


def test_a_recipe_without_weights_expects_an_encoder_that_was_planned_without_it() -> None:
    recipe = RECIPES["smit_many"]
    assert choose_intensity(SMIT, ["CT"], recipe=recipe).encoder == SMIT
    assert choose_intensity(SMIT, ["MR"], recipe=recipe).encoder is None  # percentiles 5 and 95 either way
    assert choose_intensity(SMIT, ["MR"]).encoder is None
    assert choose_intensity(VIT, ["CT"], recipe=RECIPES["3dino"]).encoder is None
