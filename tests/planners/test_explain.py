"""The table of decisions: aligned, wrapped, and saying when memory cut the crop."""

import numpy as np

from nnssl.encoders import encoder_spec
from nnssl.geometry import ScanSizes
from nnssl.planners.budgets import plan_finetune, plan_pretrain
from nnssl.planners.explain import (
    WHY_WIDTH,
    Decision,
    decision_table,
    finetune_decisions,
    network_decisions,
    pretrain_decisions,
    shared_decisions,
)
from nnssl.planners.intensity import choose_intensity
from nnssl.planners.network import choose_network
from nnssl.recipe import RECIPES

LARGE = ScanSizes(np.full((40, 3), 200.0), np.ones((40, 3)))


def test_reasons_line_up_and_wrap() -> None:
    table = decision_table(
        "title", [Decision("all", "crop", "1x1", "short"), Decision("all", "batch", "2", "word " * 40)]
    )
    lines = table.splitlines()
    column = lines[1].index("why")
    assert lines[0] == "title"
    assert lines[3].index("short") == column
    assert all(line[column:].startswith("word") for line in lines[4:])
    assert max(len(line) for line in lines) <= column + WHY_WIDTH


def test_the_table_says_when_memory_cut_the_crop() -> None:
    spec = encoder_spec("vit_small_16")
    reasons = []
    for memory in (2, 80):
        network = choose_network(spec, input_channels=1, num_classes=3)
        plan = plan_finetune(network, LARGE, memory_gb=memory)
        rows = {row.what: row.why for row in finetune_decisions(plan, LARGE, spec)}
        reasons.append(rows["crop [voxels]"])
    assert "memory target" in reasons[0]
    assert "216 tokens of the encoder's 96x96x96" in reasons[1]


def test_what_a_recipe_decides_names_the_recipe() -> None:
    spec, recipe = encoder_spec("smit_96"), RECIPES["smit_many"]
    network = choose_network(spec, input_channels=1, num_classes=2, recipe=recipe)
    plan = plan_finetune(network, LARGE, memory_gb=24, recipe=recipe)
    rows = finetune_decisions(plan, LARGE, spec, recipe) + network_decisions(network, None, None, recipe)
    reasons = {row.what: (row.value, row.why) for row in rows}
    told = "spacing [mm]", "crop [voxels]", "batch", "iterations", "learning rate", "loss, sampling", "decoder"
    for what in (*told, "decoder norm", "encoder weights"):
        assert "recipe" in reasons[what][1], what
    assert reasons["loss, sampling"][0] == "bce_dice, tumour_1to1"  # one foreground label
    assert reasons["batch"][0] == "3"
    assert reasons["iterations"][0] == "11,000"  # 1000 passes over 32 of the 40 cases, 3 at a time


def test_the_table_says_for_which_views_memory_was_counted() -> None:
    counted = {
        "smit_96": "counted for SMIT's 2 global views",
        "vit_small_16": "counted for 3DINO's 2 global and 8 local",
    }
    for name, words in counted.items():
        spec = encoder_spec(name)
        plan = plan_pretrain(spec, LARGE, images=40, datasets=("a",), memory_gb=24)
        assert words in {row.what: row.why for row in pretrain_decisions(plan, spec)}["batch"]


def test_small_scans_and_much_interpolation_are_told() -> None:
    spec = encoder_spec("smit_96")
    network = choose_network(spec, input_channels=1, num_classes=3)
    rows = []
    for shape, spacing in (((35.0, 50.0, 36.0), 1.0), ((80.0, 80.0, 80.0), 4.0), ((200.0, 200.0, 60.0), 1.0)):
        sizes = ScanSizes(np.tile(shape, (20, 1)), np.full((20, 3), spacing))
        plan = plan_finetune(network, sizes, memory_gb=24)
        rows.append({row.what: row.why for row in finetune_decisions(plan, sizes, spec)})
    small, coarse, flat = rows
    assert small["spacing [mm]"].startswith("nnU-Net's rule (1 1 1): at the 1.5 1.5 2 wanted")
    assert small["crop [voxels]"].startswith("the multiples of 32 nearest to the median scan")
    assert "14 times the voxels of nnU-Net's" in coarse["median scan [voxels]"]  # 4^3 / (1.5 x 1.5 x 2)
    assert "times the voxels" not in small["median scan [voxels]"]
    assert flat["spacing [mm]"].startswith("finer, towards nnU-Net's rule (1 1 1)")


def test_an_encoder_that_saw_another_intensity_and_a_new_patch_embedding_have_their_rows() -> None:
    spec = encoder_spec("smit_96")
    choice = choose_intensity(spec.intensity, ["CT"], recipe=RECIPES["smit_many"])
    rows = {row.what: row.value for row in shared_decisions(spec, choice, cases=3, bad_cases=0)}
    assert rows["encoder's intensity"] == "window:-500,500"
    network = choose_network(spec, input_channels=1, num_classes=2, channels="reinit")
    assert "image channels" in {row.what for row in network_decisions(network, None, "reinit", None)}
