"""A later stage starts from the teacher, the heads and the centres of an earlier run, with fitted positions."""

from dataclasses import replace

import pytest
import torch

from nnssl.layers.position import resample_positions
from nnssl.recipe import STAGES, PretrainRecipe
from nnssl.trainers.optimiser import rates_at
from nnssl.trainers.stage import Start, all_cases, start_from
from nnssl.weights.header import record_cases, seen_cases
from tests.pretext.toys import RECIPE, toy_task

LARGER = replace(RECIPE, global_crop=(48, 48, 48), local_crop=(32, 32, 32))


def _earlier(task: str = "dino", **settings: str) -> Start:
    extra = [f"{key}={value}" for key, value in settings.items()]
    built = toy_task(task, extra, seed=1)
    with torch.no_grad():
        for number, tensor in enumerate(built.state_dict().values()):
            if tensor.is_floating_point():
                tensor.add_(0.01 * number)  # student, teacher and centres differ from each other and from new ones
    return Start(
        "first", 100, task, built.spec.name, RECIPE.global_crop, built.state_dict(), record_cases([("D", "a")])
    )


@pytest.mark.parametrize("task", ["dino", "threedino"])
def test_student_and_teacher_both_start_from_the_earlier_teacher(task: str) -> None:
    start, later = _earlier(task), toy_task(task, recipe=LARGER, seed=2)
    start_from(later, start)
    positions = "encoder.pos_embed"
    for name, tensor in later.state_dict().items():
        earlier = start.tensors[name.replace("student.", "teacher.parts.", 1)]
        if not name.endswith(positions):
            assert torch.equal(tensor, earlier), name
            continue
        patches = resample_positions(earlier[:, 1:], (2, 2, 2), (3, 3, 3), rule="scale_factor")
        assert torch.equal(tensor, torch.cat([earlier[:, :1], patches], dim=1))


def test_a_task_without_a_teacher_starts_from_what_was_trained() -> None:
    start, later = _earlier("simmim"), toy_task("simmim", recipe=LARGER, seed=2)
    start_from(later, start)
    name = "student.decoder.projection.weight"
    name = name if name in start.tensors else next(key for key in start.tensors if key.startswith("student.decoder"))
    assert torch.equal(later.state_dict()[name], start.tensors[name])


def test_heads_of_another_size_are_refused_in_one_message() -> None:
    with pytest.raises(ValueError, match=r"starting from run 'first' \(dino, vit_tiny_16\): it does not fit"):
        start_from(toy_task("dino", recipe=LARGER), _earlier("dino", prototypes="128"))


def test_the_cases_of_both_stages_are_known() -> None:
    start, own = _earlier(), [("D", "b"), ("E", "a")]
    joint = all_cases(start, record_cases(own), own)
    assert joint.cases == 3 and seen_cases(joint, "D", ["a", "b", "c"]) == ["a", "b"]
    assert seen_cases(joint, "E", ["a", "b"]) == ["a"]
    with pytest.raises(ValueError, match="no record of cases"):
        all_cases(replace(start, data=None), record_cases(own), own)


def test_the_stages_are_those_of_the_paper() -> None:
    standard, high_res = (replace(PretrainRecipe(), **STAGES[name].recipe) for name in ("standard", "high_res"))
    assert standard == PretrainRecipe()
    peak = max(rates_at(step, standard).lr for step in (12_498, 12_499, 12_500))
    assert peak == pytest.approx(1.4142e-3, rel=1e-4)  # 0.002 * sqrt(512 / 1024)
    assert (high_res.global_crop, high_res.local_crop, high_res.batch_size) == ((112,) * 3, (64,) * 3, 256)
    assert rates_at(1_249, high_res).lr == pytest.approx(5e-4)  # 0.001 * sqrt(256 / 1024), warm-up of 1,250 steps
    assert rates_at(124, high_res).last_layer_lr == 0 < rates_at(125, high_res).last_layer_lr
    assert (STAGES["standard"].min_side, STAGES["high_res"].min_side) == (25, 49)
