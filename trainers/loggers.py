"""Where the numbers of a run go besides its own files: TensorBoard, Weights & Biases, MLflow, behind one interface."""

import importlib.util
import logging
import os
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from nnssl.config import flattened
from nnssl.paths import load_json, save_json

TENSORBOARD, IDS_FILE = "tensorboard", "logger_runs.json"
PROJECT = "nnssl"
PARAMETERS_AT_ONCE, METRICS_AT_ONCE = 100, 1000  # MLflow's limits per request
PATIENCE = 10.0  # seconds between MLflow's requests
COMPLETE = "log.jsonl has all numbers"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunCard:
    """What a logger is told of a run; nothing in it names a case, a path or a user."""

    folder: Path  # stays on this machine
    name: str = "run"
    settings: Mapping[str, Any] = field(default_factory=dict)  # as in config.json, without the record of the data


class Logger(ABC):
    """Receives numbers by step. A continued run goes on in the same place.

    Args:
        card: the run.
        first_step: where training begins now; earlier steps were logged before.
    """

    PACKAGE: ClassVar[str]  # what to import, and to install

    @abstractmethod
    def __init__(self, card: RunCard, first_step: int) -> None: ...

    @abstractmethod
    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Take the numbers of a step; steps may come late, and a continued run may repeat some."""

    @abstractmethod
    def flush(self) -> None:
        """Let nothing that was taken be lost; called after each checkpoint."""

    @abstractmethod
    def close(self) -> None:
        """Nothing follows."""


class TensorBoard(Logger):
    """Event files in `tensorboard/` of the run folder."""

    PACKAGE = "tensorboard"

    def __init__(self, card: RunCard, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # costs seconds: not for --help

        self.board = SummaryWriter(str(card.folder / TENSORBOARD), purge_step=first_step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One curve per number."""
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Write what waits."""
        self.board.flush()

    def close(self) -> None:
        """Write what waits."""
        self.board.close()


class WeightsAndBiases(Logger):
    """A W&B run. It stays in `wandb/` of the run folder unless WANDB_MODE=online or `wandb sync` send it.

    Everything that the client gathers by itself is turned off: host, user, program, code, git, packages, console,
    machine. WANDB_PROJECT, WANDB_ENTITY and WANDB_BASE_URL are respected.
    """

    PACKAGE = "wandb"
    QUIET: ClassVar[dict[str, Any]] = {
        "host": "",
        "program": "",
        "console": "off",
        "disable_code": True,
        "disable_git": True,
        "disable_job_creation": True,
        "x_disable_machine_info": True,
        "x_disable_meta": True,
        "x_disable_stats": True,
        "x_save_requirements": False,
        "silent": True,
    }

    def __init__(self, card: RunCard, first_step: int) -> None:
        import wandb

        identity = _kept_identity(card.folder, self.PACKAGE, lambda: uuid.uuid4().hex[:12])
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=card.name,
            id=identity,
            resume="allow",
            dir=str(card.folder),
            config=dict(card.settings),
            mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
            settings=wandb.Settings(**self.QUIET),
        )
        self.run.define_metric("*", step_metric="step")  # W&B's own steps may not go back

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One row."""
        self.run.log({"step": step, **values})

    def flush(self) -> None:
        """The service writes each row at once."""

    def close(self) -> None:
        """Wait until the service has written (or sent) everything."""
        self.run.finish()


class MLflow(Logger):
    """An MLflow run: at MLFLOW_TRACKING_URI where that is set, else in files in `mlruns/` of the run folder.

    Made through MLflow's client, which adds no user, host, program or commit. MLFLOW_EXPERIMENT_NAME is respected.
    """

    PACKAGE = "mlflow"

    def __init__(self, card: RunCard, first_step: int) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        address = os.environ.get("MLFLOW_TRACKING_URI")
        if not address:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # asked for by MLflow 3; a database needs more
            address = (card.folder / "mlruns").resolve().as_uri()
        self.client, self.metric = MlflowClient(address), Metric
        self.waiting: list[Any] = []
        self.sent = time.monotonic()
        self.run_id = _kept_identity(card.folder, self.PACKAGE, lambda: self._new_run(card, Param))
        if first_step:
            self.client.update_run(self.run_id, status="RUNNING")

    def _new_run(self, card: RunCard, parameter: Callable[[str, str], Any]) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self.client.create_experiment(name)
        run_id = self.client.create_run(experiment, run_name=card.name).info.run_id
        parameters = [parameter(key, str(value)) for key, value in flattened(dict(card.settings)).items()]
        for start in range(0, len(parameters), PARAMETERS_AT_ONCE):
            self.client.log_batch(run_id, params=parameters[start : start + PARAMETERS_AT_ONCE])
        return str(run_id)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Sent with those of other steps, every ten seconds."""
        now = int(time.time() * 1000)
        self.waiting += [self.metric(name, value, now, step) for name, value in values.items()]
        if time.monotonic() - self.sent > PATIENCE:
            self.flush()

    def flush(self) -> None:
        """Send what waits."""
        waiting, self.waiting, self.sent = self.waiting, [], time.monotonic()
        for start in range(0, len(waiting), METRICS_AT_ONCE):
            self.client.log_batch(self.run_id, metrics=waiting[start : start + METRICS_AT_ONCE])

    def close(self) -> None:
        """Send what waits and mark the run as ended."""
        self.flush()
        self.client.set_terminated(self.run_id)


LOGGERS: dict[str, type[Logger]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}


def check_loggers(names: Sequence[str]) -> None:
    """Raise a ValueError unless every logger is known and its package is there."""
    for name in names:
        if name not in LOGGERS:
            raise ValueError(f"-logger {name}: unknown; known are {', '.join(LOGGERS)}")
        package = LOGGERS[name].PACKAGE
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"-logger {name}: the package {package} is not installed; pip install {package}")


class Loggers:
    """Several loggers as one; one that fails is left out from then on, with a warning: the run is worth more.

    Args:
        names: of LOGGERS.
        card: the run.
        first_step: where training begins now; above 0 a logger that cannot begin stops nothing either.

    Raises:
        ValueError: a logger is unknown or lacks its package, or cannot begin a new run.
    """

    def __init__(self, names: Sequence[str], card: RunCard, first_step: int) -> None:
        check_loggers(names)
        self.active: dict[str, Logger] = {}
        for name in dict.fromkeys(names):
            try:
                self.active[name] = LOGGERS[name](card, first_step)
            except Exception as error:
                if not first_step:
                    raise ValueError(
                        f"-logger {name}: it could not begin ({one_line(error)}); correct that or leave it out"
                    ) from error
                log.warning("-logger %s could not go on (%s) and is left out; %s", name, one_line(error), COMPLETE)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Pass the numbers of a step on."""
        self._each(lambda logger: logger.scalars(values, step))

    def flush(self) -> None:
        """Let nothing that was taken be lost."""
        self._each(lambda logger: logger.flush())

    def close(self) -> None:
        """Close all."""
        self._each(lambda logger: logger.close())

    def _each(self, act: Callable[[Logger], None]) -> None:
        for name, logger in list(self.active.items()):
            try:
                act(logger)
            except Exception as error:
                del self.active[name]
                log.warning("-logger %s failed (%s) and is left out from now on; %s", name, one_line(error), COMPLETE)


def one_line(error: Exception) -> str:
    """What went wrong: the error's type and the first line of what it says."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no message')}"


def _kept_identity(folder: Path, logger: str, new: Callable[[], str]) -> str:
    """The run's identity there, made once and kept in `logger_runs.json` of the run folder."""
    path = folder / IDS_FILE
    known: dict[str, str] = load_json(path) if path.is_file() else {}
    if logger not in known:
        known[logger] = new()
        save_json(known, path)
    return known[logger]
