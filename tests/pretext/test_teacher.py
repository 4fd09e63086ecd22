"""The teacher follows by the formula, never learns, never drops a path."""

import torch
from torch import nn

from nnssl.pretext.teacher import Teacher


def _parts(value: float) -> dict[str, nn.Module]:
    parts = {"body": nn.Linear(2, 2), "head": nn.BatchNorm1d(2)}
    for part in parts.values():
        for tensor in (
            (*part.parameters(), part.running_mean) if isinstance(part, nn.BatchNorm1d) else part.parameters()
        ):
            nn.init.constant_(tensor, value)
    return dict(parts)


def test_a_teacher_moves_by_one_minus_momentum() -> None:
    teacher = Teacher(_parts(1.0))
    teacher.follow(_parts(3.0), momentum=0.75)
    for parameter in teacher.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, 1.5))


def test_a_momentum_of_one_leaves_the_teacher_where_it_is() -> None:
    teacher = Teacher(_parts(1.0))
    teacher.follow(_parts(3.0), momentum=1.0)
    assert all(bool((parameter == 1).all()) for parameter in teacher.parameters())


def test_buffers_are_copied() -> None:
    teacher = Teacher(_parts(1.0))
    teacher.follow(_parts(3.0), momentum=0.9)
    head = teacher.parts["head"]
    assert isinstance(head, nn.BatchNorm1d) and head.running_mean is not None
    assert head.running_mean.tolist() == [3.0, 3.0]


def test_a_teacher_starts_as_an_exact_copy_that_shares_nothing() -> None:
    students, teacher = _parts(3.0), Teacher(_parts(1.0))
    teacher.copy(students)
    nn.init.zeros_(next(students["body"].parameters()))
    assert all(bool((parameter == 3).all()) for parameter in teacher.parameters())


def test_a_teacher_has_no_gradient_and_stays_in_eval_mode() -> None:
    teacher = Teacher(_parts(1.0)).train()
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
