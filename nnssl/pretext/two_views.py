"""What tasks on two crops of one volume have in common: how far apart they may lie, and what a batch must hold."""

from dataclasses import dataclass

from nnssl.losses.processes import world
from nnssl.transforms.views import ViewSampling


@dataclass(frozen=True)
class TwoViewSettings:
    """Part of the settings of a task; crops are random and never resized (SMIT benchmark)."""

    view_sampling: str = "whole"  # paper: "from whole images"; SMIT code "subvolume"; or "min_overlap"
    subvolume: float = 4 / 3  # side of the subvolume in sides of a view; SMIT code: 128 for 96
    min_overlap: float = 0.5  # share of each side that two views have in common at least

    @property
    def sampling(self) -> ViewSampling:
        """The three settings as one rule, checked."""
        return ViewSampling(self.view_sampling, self.subvolume, self.min_overlap)


def check_negatives(task: str, batch_size: int, scope: str) -> None:
    """Raise a ValueError where InfoNCE would see one volume only: its loss is 0 then, whatever the network does.

    Args:
        batch_size: volumes of all processes.
        scope: whether a volume is compared with those of all processes ("global") or of its own ("process").
    """
    needed = 2 * world() // world(scope)
    if batch_size < needed:
        among = "" if scope == "global" else f" over {world()} process(es), each on its own (scope={scope}),"
        raise ValueError(
            f"pretext task {task} tells the volumes of a batch apart: batch_size={batch_size}{among} leaves nothing to "
            f"compare; take {needed} or more (--set batch_size={needed})"
        )
