"""The table of decisions: aligned, wrapped, and saying when memory cut the crop."""

import numpy as np

from nnssl.encoders import encoder_spec
from nnssl.geometry import ScanSizes
from nnssl.planners.budgets import plan_finetune
from nnssl.planners.explain import WHY_WIDTH, Decision, decision_table, finetune_decisions, network_decisions
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
    for memory in (3, 80):
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
