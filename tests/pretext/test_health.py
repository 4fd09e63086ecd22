"""Health numbers speak of what a task trains: no alarm in a good run whatever else dies, one where the features die."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnssl.encoders.base import Features
from nnssl.losses.health import feature_health
from nnssl.trainers.collapse import symptoms
from tests.pretext.toys import RECIPE, optimiser_of, toy_batch, toy_task

WATCHED = replace(RECIPE, batch_size=8)  # the rank is watched from 4 volumes on
ON_VOXELS = ("reconstruction", "inpainting", "simmim")
NAMES = ("feature_std", "effective_rank")


def _numbers(found: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in found.items()}


def _change(task: Any, change: Callable[[Features], Features]) -> None:
    """Whatever the encoder in training finds is changed before the task sees it."""
    task.encoder.register_forward_hook(lambda module, given, features: change(features))


def _without_summary(features: Features) -> Features:
    return features._replace(summary=torch.ones_like(features.summary))


def _constant(features: Features) -> Features:
    same = [torch.full_like(feature_map, 0.3) + 0 * feature_map for feature_map in features.maps]
    return features._replace(maps=same)


@pytest.mark.parametrize("name", ON_VOXELS)
def test_a_good_short_run_raises_no_alarm_although_the_class_token_is_dead(name: str) -> None:
    task = toy_task(name)
    _change(task, _without_summary)
    optimiser, losses = optimiser_of(task, lr=2e-3), []
    for step in range(12):
        found = task(toy_batch(task, seed=step % 3))
        optimiser.zero_grad()
        found["loss"].backward()
        optimiser.step()
        losses.append(found["loss"].item())
        assert symptoms(_numbers(found), WATCHED) == {}
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("family", ["vit", "swin"])
@pytest.mark.parametrize("name", ON_VOXELS)
def test_a_map_that_is_the_same_everywhere_raises_the_alarm(name: str, family: str) -> None:
    task = toy_task(name, family=family)
    _change(task, _constant)
    found = symptoms(_numbers(task(toy_batch(task))), WATCHED)
    assert set(found) == set(NAMES)


@pytest.mark.parametrize("name", ["rotation", "contrastive", "swin_unetr"])
def test_a_summary_that_is_the_same_for_all_volumes_raises_the_alarm_where_it_is_classified(name: str) -> None:
    task = toy_task(name)
    _change(task, _without_summary)
    assert set(symptoms(_numbers(task(toy_batch(task))), WATCHED)) == set(NAMES)


@pytest.mark.parametrize("setting", ["read=corner", "weights=[0, 0, 1]"])
def test_swin_unetr_reports_the_cells_where_no_head_reads_the_summary(setting: str) -> None:
    task = toy_task("swin_unetr", [setting])
    batch = toy_batch(task)
    cells = task.encoder(batch["views"]).maps[-1].detach().flatten(2).transpose(1, 2).flatten(0, 1)
    found = task(batch)
    assert {name: found[name].item() for name in NAMES} == pytest.approx(_numbers(feature_health(cells)))


def test_teacher_tasks_report_the_teachers_image_token_or_its_patches_where_that_has_no_weight() -> None:
    for setting, tapped in (("image_weight=1", "summary"), ("image_weight=0", "patch")):
        task: Any = toy_task("ibot", [setting])
        batch = toy_batch(task)
        nn.init.normal_(task.student["encoder"].norm.weight)  # the teacher is another network by now
        whole = task.result()(batch["views"])
        rows = whole.summary if tapped == "summary" else whole.tokens["patch"].flatten(0, 1)
        found = task(batch)
        assert {name: found[name].item() for name in NAMES} == pytest.approx(_numbers(feature_health(rows)))
