"""Fine-tuning recipes: the papers' numbers, and one line for each value that makes no sense."""

from typing import Any

import pytest

from nnssl.config import from_dict, to_dict
from nnssl.recipe import RECIPES, FineTuneRecipe


def test_3dino_trains_30000_iterations_on_a_frozen_encoder() -> None:
    preset = RECIPES["3dino"]
    recipe = preset.recipe_for(13, training_cases=1000, batch_size=8)
    assert recipe.epochs * recipe.iterations_per_epoch == 30_000
    assert recipe.warmup_fraction * 30_000 == 3_000
    assert (recipe.lr, recipe.weight_decay, recipe.inference_overlap) == (1e-4, 0.01, 0.75)
    assert (preset.decoder, preset.frozen, preset.batch_size) == ("unet", True, 8)


@pytest.mark.parametrize(("name", "epochs"), [("smit_many", 1000), ("smit_few", 3000)])
def test_smit_tunes_everything_with_early_stopping(name: str, epochs: int) -> None:
    preset = RECIPES[name]
    organs, tumour = (preset.recipe_for(labels, training_cases=40, batch_size=3) for labels in (15, 1))
    assert (organs.loss, organs.sampling) == ("ce_dice", "nnunet")
    assert (tumour.loss, tumour.sampling) == ("bce_dice", "tumour_1to1")
    for recipe in (organs, tumour):
        assert (recipe.lr, recipe.epochs, recipe.layer_decay, recipe.inference_overlap) == (2e-4, epochs, 1.0, 0.5)
        assert recipe.early_stopping > 0
        assert (recipe.iterations_per_epoch, recipe.val_iterations) == (14, 14)  # an epoch is one pass
    assert (preset.decoder, preset.norm, preset.frozen, preset.batch_size) == ("swin_unetr", "batch", False, 3)
    assert (preset.crop, preset.spacing_mm) == ((96, 96, 96), (1.5, 1.5, 2.0))
    assert preset.ct_window_hu == (-175, 250)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_a_plans_file(name: str) -> None:
    for recipe in (RECIPES[name].finetune, RECIPES[name].single_label):
        assert from_dict(FineTuneRecipe, to_dict(recipe)) == recipe


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"loss": "dice"}, "FineTuneRecipe.loss='dice': known: ce_dice, bce_dice"),
        ({"sampling": "1:1"}, "known: nnunet, tumour_1to1"),
        ({"early_stopping": -1}, "must be 0 or more"),
        ({"weight_decay": -0.1}, "must be 0 or more"),
        ({"layer_decay": 0.0}, "must be above 0"),
        ({"layer_decay": 1.5}, "must lie between 0 and 1"),
        ({"inference_overlap": 1.0}, "below 1"),
    ],
)
def test_values_that_make_no_sense_are_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        FineTuneRecipe(**change)
