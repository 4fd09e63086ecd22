"""Loggers keep what they are told, go on in the same place, give nothing away, and never stop a run."""

import importlib.util
import json
import logging
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from nnssl.trainers.loggers import IDS_FILE, LOGGERS, Logger, Loggers, RunCard, TensorBoard, check_loggers

VALUES = {0: {"loss/loss": 2.25, "gradient/encoder": 0.5}, 1: {"loss/loss": 1.125, "gradient/encoder": 0.25}}
PROBE = {"probe/knn": 0.625, "probe/knn_Anterior": 0.375}
SETTINGS = {"task": "threedino", "recipe": {"steps": 4, "weight_decay": [0.04, 0.4]}, "plan": {"datasets": ["D1"]}}
PRIVATE = "SECRETPLACE"


@pytest.fixture(params=LOGGERS)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    package = LOGGERS[request.param].PACKAGE
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")
    for variable in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    return str(request.param)


@pytest.fixture
def card(tmp_path: Path) -> RunCard:
    folder = tmp_path / PRIVATE
    folder.mkdir()
    return RunCard(folder, "mine", SETTINGS)


def use(name: str, card: RunCard, first_step: int, steps: tuple[int, ...]) -> None:
    logger = LOGGERS[name](card, first_step)
    for step in steps:
        logger.scalars(VALUES[step], step)
    logger.scalars(PROBE, 0)  # late, as probes are
    logger.flush()
    logger.close()


def from_tensorboard(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def from_wandb(folder: Path) -> dict[str, dict[int, float]]:
    """Which of the names and numbers are in the client's offline files; its service ends a moment after `finish`."""
    rows = [(step, key, value) for step, values in [*VALUES.items(), (0, PROBE)] for key, value in values.items()]
    found: dict[str, dict[int, float]] = {}
    for _ in range(50):
        content = b"".join(path.read_bytes() for path in folder.glob("wandb/offline-run-*/*.wandb"))
        for step, key, value in rows:
            if key.encode() in content and json.dumps(value).encode() in content:
                found.setdefault(key, {})[step] = value
        if sum(map(len, found.values())) == len(rows):
            break
        time.sleep(0.1)
    return found


def from_mlflow(folder: Path) -> dict[str, dict[int, float]]:
    from mlflow import MlflowClient

    client = MlflowClient((folder / "mlruns").as_uri())
    (experiment,) = [one for one in client.search_experiments() if one.name == "nnssl"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["recipe.steps"] == "4" and run.info.run_name == "mine"
    assert run.info.user_id in ("", "unknown") and run.info.status == "FINISHED"
    return {
        key: {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, key)}
        for key in run.data.metrics
    }


READERS: Mapping[str, Callable[[Path], dict[str, dict[int, float]]]] = {
    "tensorboard": from_tensorboard,
    "wandb": from_wandb,
    "mlflow": from_mlflow,
}
EXPECTED = {
    "loss/loss": {0: 2.25, 1: 1.125},
    "gradient/encoder": {0: 0.5, 1: 0.25},
    "probe/knn": {0: 0.625},
    "probe/knn_Anterior": {0: 0.375},
}


def test_every_number_can_be_read_back_at_its_step(name: str, card: RunCard) -> None:
    use(name, card, 0, (0, 1))
    assert READERS[name](card.folder) == EXPECTED


def test_a_continued_run_goes_on_in_the_same_place(name: str, card: RunCard) -> None:
    use(name, card, 0, (0,))
    kept = (card.folder / IDS_FILE).read_text() if (card.folder / IDS_FILE).is_file() else ""
    use(name, card, 1, (1,))
    assert READERS[name](card.folder) == EXPECTED
    if name != "tensorboard":
        assert kept == (card.folder / IDS_FILE).read_text() and list(json.loads(kept)) == [name]


def test_what_could_leave_the_machine_names_no_user_host_or_folder(
    name: str, card: RunCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(variable, "SECRETUSER")  # what getpass.getuser() says
    use(name, card, 0, (0, 1))
    assert READERS[name](card.folder) == EXPECTED
    local = ("logs", "meta.yaml")  # W&B's own debug logs and where MLflow's files lie; both stay here
    private = [PRIVATE.encode(), b"SECRETUSER", str(Path(__file__).parent).encode()]
    private += [name.encode() for name in (socket.gethostname(),) if len(name) > 4]
    sent = [
        path
        for path in card.folder.rglob("*")
        if path.is_file() and path.suffix != ".log" and not set(path.parts) & set(local)
    ]
    assert sent
    for path in sent:
        if name != "tensorboard":  # stays here; its file name holds the host's
            assert not any(word in path.read_bytes() or word in path.name.encode() for word in private), path


def test_an_unknown_logger_and_an_absent_package_are_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="-logger comet: unknown; known are tensorboard, wandb, mlflow"):
        check_loggers(["tensorboard", "comet"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="-logger mlflow: the package mlflow is not installed; pip install mlflow"):
        check_loggers(["mlflow"])


class Broken(TensorBoard):
    """Loses its connection at the second step."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        if step:
            raise ConnectionError("no route\nto host")
        super().scalars(values, step)


class Refused(TensorBoard):
    """Does not begin."""

    def __init__(self, card: RunCard, first_step: int) -> None:
        raise PermissionError("no key")


def with_loggers(monkeypatch: pytest.MonkeyPatch, **classes: type[Logger]) -> None:
    for name, cls in classes.items():
        monkeypatch.setitem(LOGGERS, name, cls)


def test_a_logger_that_fails_is_left_out_with_a_warning_and_the_others_go_on(
    card: RunCard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_loggers(monkeypatch, broken=Broken)
    loggers = Loggers(["broken", "tensorboard"], card, 0)
    with caplog.at_level(logging.WARNING):
        for step in (0, 1, 1):
            loggers.scalars(VALUES[step], step)
    loggers.close()
    assert [record.getMessage() for record in caplog.records] == [
        "-logger broken failed (ConnectionError: no route) and is left out from now on; log.jsonl has all numbers"
    ]
    assert from_tensorboard(card.folder)["loss/loss"][1] == 1.125


def test_a_logger_that_cannot_begin_stops_a_new_run_and_no_continued_one(
    card: RunCard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_loggers(monkeypatch, refused=Refused)
    with pytest.raises(ValueError, match=r"-logger refused: it could not begin \(PermissionError: no key\)"):
        Loggers(["refused"], card, 0)
    words: dict[str, Any] = Loggers(["refused"], card, 7).active
    assert words == {} and "could not go on (PermissionError: no key)" in caplog.text
