"""Schedules against the golden numbers of the reference and values worked out by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nnssl.losses.schedules import cosine, linear_warmup, peak_learning_rate, warmup_cosine, zero_until

BATCHES = {"standard": (2e-3, 512), "highres": (1e-3, 256)}


@pytest.mark.parametrize("stage", BATCHES)
def test_every_schedule_equals_the_reference(golden: Callable[[str], Any], stage: str) -> None:
    stored = golden("g05b_schedules.npz")
    peak, epoch, total = stored[f"{stage}.peak_lr_epoch_total"]
    epoch, total = int(epoch), int(total)
    assert peak_learning_rate(*BATCHES[stage]) == pytest.approx(peak, rel=1e-12)
    found: dict[str, list[float]] = {"lr": [], "weight_decay": [], "momentum": [], "teacher_temp": []}
    found["last_layer_lr"] = []
    for step in stored[f"{stage}.iterations"].tolist():
        rate = warmup_cosine(step, total, warmup_steps=10 * epoch, base=peak, final=1e-6)
        found["lr"].append(rate)
        found["last_layer_lr"].append(zero_until(step, epoch, rate))
        found["weight_decay"].append(cosine(step, total, 0.04, 0.4))
        found["momentum"].append(cosine(step, total, 0.992, 1.0))
        found["teacher_temp"].append(linear_warmup(step, 30 * epoch, 0.04, 0.07))
    for name, values in found.items():
        np.testing.assert_allclose(values, stored[f"{stage}.{name}"], rtol=1e-12, err_msg=name)


def test_a_cosine_is_halfway_at_half_time() -> None:
    assert cosine(50, 100, 0.04, 0.4) == pytest.approx(0.22, rel=1e-12)


def test_a_warm_up_reaches_its_end_on_its_last_step() -> None:
    assert [linear_warmup(step, 3, 0.0, 1.0) for step in range(5)] == [0.0, 0.5, 1.0, 1.0, 1.0]


def test_schedules_without_warm_up_or_with_one_step_are_defined() -> None:
    assert warmup_cosine(0, 10, warmup_steps=0, base=1.0, final=0.0) == 1.0
    assert warmup_cosine(0, 1, warmup_steps=1, base=1.0, final=0.0) == 0.0
    assert warmup_cosine(5, 5, warmup_steps=5, base=1.0, final=0.5) == 0.5
