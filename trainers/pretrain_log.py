"""What a pretraining run tells its user: progress line, log.jsonl, loggers, curves.png and the encoder so far."""

import json
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from torch import Tensor
from tqdm import tqdm

from nnssl.losses.health import HEALTH
from nnssl.paths import atomic_write
from nnssl.recipe import PretrainRecipe
from nnssl.trainers.collapse import limits
from nnssl.trainers.loggers import Loggers, RunCard
from nnssl.trainers.pretraining import Watcher
from nnssl.visualization.curves import draw_curves, read_log

LOG, CURVES = "log.jsonl", "curves.png"
LOGGED_STEPS = 10_000  # longer runs log every second, third ... step
SHOWN = 4  # numbers in the progress line: the loss and its first parts
COSTS = ("lr", "weight_decay", "seconds", "seconds_data", "samples_per_s", "tflops", "mfu")

AtSave = Callable[[int, dict[str, Tensor]], Mapping[str, float] | None]


class RunLog(Watcher):
    """Writes the records of a run into its folder and to its loggers.

    A continued run drops the records after its checkpoint and repeats those steps.

    Args:
        card: the run; its folder exists.
        recipe: of the run.
        at_save: called with (steps_done, task_state) at each save; may return numbers to log.
        loggers: names in LOGGERS.
    """

    def __init__(
        self, card: RunCard, recipe: PretrainRecipe, at_save: AtSave, *, loggers: Sequence[str] = ("tensorboard",)
    ) -> None:
        self.card, self.folder, self.steps = card, card.folder, recipe.steps
        self.at_save, self.logger_names = at_save, loggers
        self.limits = limits(recipe)
        self.every = -(-recipe.steps // LOGGED_STEPS)
        self.lock = threading.Lock()  # saves are told of in another thread than steps

    def started(self, first_step: int) -> None:
        """Open the files at the step where training begins."""
        _keep_before(self.folder / LOG, first_step)
        self.log: TextIO = (self.folder / LOG).open("a", encoding="utf-8", buffering=1)  # kill -9 loses no line
        self.loggers = Loggers(self.logger_names, self.card, first_step)
        quiet = 0.2 if sys.stderr.isatty() else 10.0  # seconds between progress lines
        self.bar = tqdm(total=self.steps, initial=first_step, unit="step", mininterval=quiet, dynamic_ncols=True)

    def stepped(self, step: int, values: dict[str, float]) -> None:
        """Log one step."""
        losses = {name: value for name, value in values.items() if _is_loss(name)}
        shown = {name: f"{value:.4g}" for name, value in list(losses.items())[:SHOWN]}
        self.bar.set_postfix(shown | _speed(values), refresh=False)
        self.bar.update()
        if step % self.every == 0 or step + 1 == self.steps:
            self._record(step, values)

    def saved(self, steps_done: int, state: dict[str, Tensor]) -> None:
        """Write the encoder, look at it where it is the time, and redraw the curves."""
        found = self.at_save(steps_done, state)
        if found:
            self._record(steps_done - 1, found)
        with self.lock:
            self.loggers.flush()
        records = read_log(self.folder / LOG)
        names = dict.fromkeys(name for record in records for name in record)
        panels = {name: [name] for name in names if name != "step" and _is_loss(name)}
        panels |= {
            "gradient norm before clipping": ["gradient/"],
            "learning rate": ["lr"],
            "samples/s": ["samples_per_s"],
        }
        if "probe/knn" in names:
            panels["probe: mean recall (knn), mean Dice (linear)"] = ["probe/knn", "probe/linear"]
        draw_curves(records, panels, self.folder / CURVES, limits=self.limits)

    def _record(self, step: int, values: Mapping[str, float]) -> None:
        rounded = {name: float(f"{value:.7g}") for name, value in values.items()}
        with self.lock:
            self.log.write(json.dumps({"step": step} | rounded) + "\n")
            self.loggers.scalars({_group(name) + name: value for name, value in values.items()}, step)

    def close(self) -> None:
        """Close the files; also after an error."""
        for name in ("log", "loggers", "bar"):
            if hasattr(self, name):
                getattr(self, name).close()


def _is_loss(name: str) -> bool:
    """Whether a logged number is a loss or a health number: no cost, gradient norm or probe."""
    return name not in COSTS and "/" not in name


def _speed(values: Mapping[str, float]) -> dict[str, str]:
    """The end of the progress line: what a GPU waits for, and how much of it is used."""
    return {
        "samples/s": f"{values['samples_per_s']:.2f}",
        "data wait": f"{100 * values['seconds_data'] / values['seconds']:.0f}%",
        "TFLOP/s": f"{values['tflops']:.3g}",
        "MFU": f"{100 * values['mfu']:.0f}%",
    }


def _group(name: str) -> str:
    """Prefix under which loggers show a number; gradient norms and probes have their own."""
    if "/" in name:
        return ""
    return "cost/" if name in COSTS else "health/" if name in HEALTH else "loss/"


def _keep_before(path: Path, first_step: int) -> None:
    """Drop records from `first_step` on, which a continued run writes again; a kill meanwhile loses none."""
    kept = [record for record in read_log(path) if record["step"] < first_step] if path.is_file() else []
    with atomic_write(path) as part:
        part.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
