"""Settings of a task on two crops of one volume: how far apart they may lie."""

from dataclasses import dataclass

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
