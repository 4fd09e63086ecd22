"""What a pretraining run tells its user: progress line, log.jsonl, TensorBoard, curves.png and the encoder so far."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from torch import Tensor
from tqdm import tqdm

from nnssl.losses.health import HEALTH
from nnssl.recipe import PretrainRecipe
from nnssl.trainers.collapse import limits
from nnssl.trainers.pretraining import Watcher
from nnssl.visualization.curves import draw_curves, read_log

LOG, CURVES, TENSORBOARD = "log.jsonl", "curves.png", "tensorboard"
LOGGED_STEPS = 10_000  # longer runs log every second, third ... step
SHOWN = 4  # numbers in the progress line: the loss and its first parts
COSTS = ("lr", "weight_decay", "seconds", "seconds_data", "samples_per_s")

SaveEncoder = Callable[[int, dict[str, Tensor]], None]


class RunLog(Watcher):
    """Writes the records of a run into its folder; `save_encoder(steps_done, task_state)` is called at each save.

    A continued run drops the records after its checkpoint and repeats those steps.
    """

    def __init__(self, folder: Path, recipe: PretrainRecipe, save_encoder: SaveEncoder) -> None:
        self.folder, self.steps, self.save_encoder = folder, recipe.steps, save_encoder
        self.limits = limits(recipe)
        self.every = -(-recipe.steps // LOGGED_STEPS)

    def started(self, first_step: int) -> None:
        """Open the files at the step where training begins."""
        from torch.utils.tensorboard import SummaryWriter  # costs seconds: not for --help

        _keep_before(self.folder / LOG, first_step)
        self.log: TextIO = (self.folder / LOG).open("a", encoding="utf-8", buffering=1)  # kill -9 loses no line
        self.board = SummaryWriter(str(self.folder / TENSORBOARD), purge_step=first_step)
        quiet = 0.2 if sys.stderr.isatty() else 10.0  # seconds between progress lines
        self.bar = tqdm(total=self.steps, initial=first_step, unit="step", mininterval=quiet, dynamic_ncols=True)

    def stepped(self, step: int, values: dict[str, float]) -> None:
        """Log one step."""
        losses = {name: value for name, value in values.items() if name not in COSTS and "/" not in name}
        shown = {name: f"{value:.4g}" for name, value in list(losses.items())[:SHOWN]}
        self.bar.set_postfix(shown | {"samples/s": f"{values['samples_per_s']:.2f}"}, refresh=False)
        self.bar.update()
        if step % self.every == 0 or step + 1 == self.steps:
            rounded = {name: float(f"{value:.7g}") for name, value in values.items()}
            self.log.write(json.dumps({"step": step} | rounded) + "\n")
            for name, value in values.items():
                self.board.add_scalar(_group(name) + name, value, step)

    def saved(self, steps_done: int, state: dict[str, Tensor]) -> None:
        """Write the encoder and redraw the curves."""
        self.save_encoder(steps_done, state)
        self.board.flush()
        records = read_log(self.folder / LOG)
        losses = [name for name in records[-1] if name not in ("step", *COSTS) and "/" not in name] if records else []
        panels = {name: [name] for name in losses}
        panels |= {
            "gradient norm before clipping": ["gradient/"],
            "learning rate": ["lr"],
            "samples/s": ["samples_per_s"],
        }
        draw_curves(records, panels, self.folder / CURVES, limits=self.limits)

    def close(self) -> None:
        """Close the files; also after an error."""
        for name in ("log", "board", "bar"):
            if hasattr(self, name):
                getattr(self, name).close()


def _group(name: str) -> str:
    """Prefix under which TensorBoard shows a number; gradient norms have their own."""
    if "/" in name:
        return ""
    return "cost/" if name in COSTS else "health/" if name in HEALTH else "loss/"


def _keep_before(path: Path, first_step: int) -> None:
    """Drop records from `first_step` on, which a continued run writes again."""
    kept = [record for record in read_log(path) if record["step"] < first_step] if path.is_file() else []
    path.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
