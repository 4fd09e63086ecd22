"""Learning rate of fine-tuning: warm-up from 0, then cosine to 0, exact per iteration (3DINO, Methods)."""

from torch.optim import Optimizer

from nnssl.losses.schedules import cosine


def learning_rate(iteration: int, total: int, warmup: int, peak: float) -> float:
    """0 at iteration 0, `peak` at iteration `warmup`, 0 at iteration `total`."""
    if iteration < warmup:
        return peak * iteration / warmup
    return cosine(iteration - warmup, total - warmup, peak, 0.0)


class IterationSchedule:
    """Sets the learning rate of every parameter group before each iteration; nnU-Net calls `step` once an epoch.

    A group keeps its share of the peak: the learning rate that it has when the schedule is made, relative to `peak`.
    """

    def __init__(
        self, optimizer: Optimizer, peak: float, *, epochs: int, per_epoch: int, warmup_fraction: float
    ) -> None:
        self.optimizer = optimizer
        self.peak = peak
        self.shares = [group["lr"] / peak for group in optimizer.param_groups]
        self.per_epoch = per_epoch
        self.total = epochs * per_epoch
        self.warmup = round(warmup_fraction * self.total)
        self.iteration = 0

    def step(self, epoch: int) -> None:
        """Go to the first iteration of `epoch`."""
        self._set(epoch * self.per_epoch)

    def next_iteration(self) -> None:
        """Go on by one iteration, after the optimiser's step."""
        self._set(self.iteration + 1)

    def _set(self, iteration: int) -> None:
        self.iteration = iteration
        rate = learning_rate(iteration, self.total, self.warmup, self.peak)
        for group, share in zip(self.optimizer.param_groups, self.shares, strict=True):
            group["lr"] = share * rate
