"""Saving beside the training: the state is copied at once, a thread writes it while the next steps run."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType


class Saver:
    """Does one job at a time in a thread; an error of the last job is raised by the next call, whichever it is."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saving")
        self._job: Future[None] | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Wait for the earlier job, then start this one."""
        self.finish()
        self._job = self._thread.submit(job)

    def check(self) -> None:
        """Raise what a job that has ended raised; never waits."""
        if self._job is not None and self._job.done():
            self.finish()

    def finish(self) -> None:
        """Wait for the job and raise what it raised."""
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        if kind is None:
            self.finish()
