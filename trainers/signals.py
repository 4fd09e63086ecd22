"""A run that is asked to stop finishes its step: signals of a time limit or pre-emption are only noted."""

import signal
import threading
from types import FrameType, TracebackType

import torch

from nnssl.losses.processes import highest

SIGNALS = ("SIGTERM", "SIGUSR1", "SIGUSR2")  # of SLURM: before it kills; where --signal=USR1@SECONDS asks; submitit's


class StopRequest:
    """Inside `with`, the signals are noted; outside they do what they did before. Does nothing outside the main thread.

    A second signal changes nothing: the scheduler kills a process that takes too long.
    """

    def __init__(self) -> None:
        self.noted = False

    def __enter__(self) -> "StopRequest":
        wanted = SIGNALS if threading.current_thread() is threading.main_thread() else ()
        numbers = [getattr(signal, name) for name in wanted if hasattr(signal, name)]
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def made(self, device: torch.device) -> bool:
        """Whether any process of the run was asked to stop; all processes call this and get the same answer."""
        return bool(highest(torch.tensor(float(self.noted), device=device)))

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted = True
