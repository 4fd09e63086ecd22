"""A later stage: a run that starts from the teacher and the heads of an earlier one, at another resolution (3DINO)."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nnssl.paths import load_json, pretrained_folder
from nnssl.pretext.base import PretextTask
from nnssl.trainers.checkpoints import LATEST, has_checkpoint, load_checkpoint, load_latest
from nnssl.trainers.pretrain_run import CONFIG_FILE, ENCODER_FILE
from nnssl.weights.encoder_file import read_header
from nnssl.weights.header import DataRecord, case_hash
from nnssl.weights.positions import fit_positions

STUDENT, TEACHER = "student.", "teacher.parts."


@dataclass(frozen=True)
class Start:
    """The end of an earlier run, or one of its milestones."""

    run: str
    steps_done: int
    task: str  # name in TASKS
    encoder: str
    global_crop: tuple[int, int, int]  # voxels
    tensors: dict[str, Tensor]  # of the task
    data: DataRecord | None  # the cases that this run and those before it have seen


def read_start(name: str) -> Start:
    """What another run starts from.

    Args:
        name: a run below pretrained/ (its latest checkpoint), or RUN/checkpoint_step00112500.pt for a milestone.

    Raises:
        FileNotFoundError: no such run, or it has no such checkpoint.
    """
    run, _, file = name.partition("/")
    folder = pretrained_folder() / run
    if not (has_checkpoint(folder) if not file else (folder / file).is_file()):
        known = sorted(path.parent.name for path in pretrained_folder().glob(f"*/{LATEST}"))
        raise FileNotFoundError(
            f"-pretrained_run {name}: no checkpoint {folder / (file or LATEST)}; "
            f"runs here: {', '.join(known) or 'none'}"
        )
    state = load_checkpoint(folder / file) if file else load_latest(folder)[1]
    config, header = load_json(folder / CONFIG_FILE), read_header(folder / ENCODER_FILE)
    return Start(
        run=name,
        steps_done=int(state["steps_done"]),
        task=config["task"],
        encoder=config["plan"]["encoder"],
        global_crop=_crop(state["recipe"]["global_crop"]),
        tensors=state["task"],
        data=None if header is None else header.data,
    )


def start_from(task: PretextTask, start: Start) -> None:
    """Give student and teacher the weights of the earlier teacher, heads included, and the centres.

    Position tables are resampled to the grid of this run's crops. Parts that have no teacher continue as they were.
    The optimiser and all schedules begin anew (3DINO reference).

    Raises:
        ValueError: the earlier run had another task, encoder or heads.
    """
    taught = {
        name: start.tensors.get(name.replace(STUDENT, TEACHER, 1) if name.startswith(STUDENT) else name, tensor)
        for name, tensor in start.tensors.items()
    }
    for prefix in {name.partition("encoder.")[0] + "encoder." for name in taught if _in_encoder(name)}:
        own = {name.removeprefix(prefix): tensor for name, tensor in taught.items() if name.startswith(prefix)}
        fitted, _ = fit_positions(task.encoder, own, start.global_crop)
        taught |= {prefix + name: tensor for name, tensor in fitted.items()}
    try:
        task.load_state_dict(taught)
    except RuntimeError as error:
        raise ValueError(
            f"starting from run {start.run!r} ({start.task}, {start.encoder}): it does not fit this task and encoder; "
            f"give the same -t, -e and head settings (--set prototypes=...); {error}"
        ) from error


def all_cases(start: Start, record: DataRecord, cases: list[tuple[str, str]]) -> DataRecord:
    """The cases of this run and of those before it, under the salt of the earlier ones.

    Raises:
        ValueError: the earlier run does not say what it has seen.
    """
    if start.data is None:
        raise ValueError(
            f"starting from run {start.run!r}: its {ENCODER_FILE} has no record of cases; pretrain it again"
        )
    salt = start.data.salt
    hashes = sorted({*start.data.case_hashes, *(case_hash(salt, dataset, case) for dataset, case in cases)})
    return DataRecord(salt, tuple(hashes), len(hashes), case_hash(salt, start.data.data_hash, record.data_hash))


def _in_encoder(name: str) -> bool:
    return name.startswith((f"{STUDENT}encoder.", f"{TEACHER}encoder."))


def _crop(values: Any) -> tuple[int, int, int]:
    x, y, z = (int(side) for side in values)
    return x, y, z
