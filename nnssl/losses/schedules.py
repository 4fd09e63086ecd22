"""Schedules as pure functions of the step (3DINO, golden g05b): nothing is stored, so resuming needs nothing."""

import math


def cosine(step: int, total: int, start: float, end: float) -> float:
    """Half a cosine from `start` at step 0 to `end` at step `total`, `end` afterwards.

    Weight decay (0.04 -> 0.4) and the teacher's momentum (0.992 -> 1) of 3DINO.
    """
    if step >= total:
        return end
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * step / total))


def linear_warmup(step: int, warmup_steps: int, start: float, end: float) -> float:
    """A straight line from `start` at step 0 to `end` at step `warmup_steps - 1` (end included), `end` afterwards.

    The teacher's temperature of 3DINO: 0.04 -> 0.07 in the first 30 % of the steps.
    """
    if step >= warmup_steps:
        return end
    return start + step * ((end - start) / max(warmup_steps - 1, 1))


def warmup_cosine(step: int, total: int, *, warmup_steps: int, base: float, final: float) -> float:
    """The learning rate: linear from 0 to `base` within `warmup_steps`, then half a cosine to `final` at `total`."""
    if step < warmup_steps:
        return linear_warmup(step, warmup_steps, 0.0, base)
    return cosine(step - warmup_steps, total - warmup_steps, base, final)


def zero_until(step: int, steps: int, value: float) -> float:
    """0 in the first `steps` steps, `value` afterwards: the learning rate of the prototypes ("last layer")."""
    return 0.0 if step < steps else value


def peak_learning_rate(base_lr: float, batch_size: int) -> float:
    """Square-root rule of DINOv2: `base_lr` belongs to a batch of 1024 over all devices."""
    return base_lr * math.sqrt(batch_size / 1024)
