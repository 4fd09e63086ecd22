"""What `nnssl_pretrain --list` prints: tables of tasks, their defaults and the encoders."""

import dataclasses
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from nnssl.encoders import ENCODERS, encoder_spec
from nnssl.pretext import TASKS
from nnssl.pretext.base import PretextTask
from nnssl.recipe import PretrainRecipe

WIDEST, NARROWEST = 120, 20  # characters of a table, and of a column that wraps


def print_tables(task: str | None) -> None:
    """Tasks, recipe, settings of each task (or of one) and encoders; the settings are what `--set` changes."""
    names = [task] if task else list(TASKS)
    print("tasks (-t)")
    _print_table(("task", "source", "encoder parameters without gradient"), [_task_row(name) for name in names])
    print("\nrecipe (--set); crops, steps and batch_size come from the plan, empty cells are as in the plan")
    recipes = _distinct_recipes(names)
    columns = [TASKS[members[0]].RECIPE for members in recipes]
    defaults = _defaults(PretrainRecipe)
    rows = [
        (key, _text(value), *(_text(column[key]) if key in column else "" for column in columns))
        for key, value in defaults.items()
    ]
    _print_table(("key", "plan's default", *(", ".join(members) for members in recipes)), rows)
    print("\nsettings of the tasks (--set)")
    settings = [(name, " ".join(f"{key}={_text(value)}" for key, value in _settings(name).items())) for name in names]
    _print_table(("task", "key=default"), settings)
    print("\nencoders (-e)")
    _print_table(
        (
            "encoder",
            "family",
            "blocks",
            "channels",
            "strides",
            "crop multiple of",
            "native crop",
            "hides tokens",
        ),
        [_encoder_row(name) for name in ENCODERS],
    )


def _task_row(name: str) -> tuple[str, ...]:
    task: type[PretextTask] = TASKS[name]
    claims = "; ".join(f"{family}: {' '.join(patterns)}" for family, patterns in task.UNTRAINED.items())
    return name, task.SOURCE, claims or "none"


def _distinct_recipes(names: Sequence[str]) -> list[list[str]]:
    """Tasks with equal changes of the recipe together; those without changes are left out."""
    groups: list[list[str]] = []
    for name in names:
        for group in groups:
            if TASKS[group[0]].RECIPE == TASKS[name].RECIPE:
                group.append(name)
                break
        else:
            groups.append([name])
    return [group for group in groups if TASKS[group[0]].RECIPE]


def _encoder_row(name: str) -> tuple[str, ...]:
    spec = encoder_spec(name)
    lists = [", ".join(map(str, values)) for values in (spec.channels, spec.strides)]
    crop = " x ".join(map(str, spec.native_crop))
    return name, spec.family, str(spec.depth), *lists, str(spec.crop_multiple), crop, "yes" if spec.maskable else "no"


def _settings(name: str) -> Mapping[str, Any]:
    return _defaults(TASKS[name].Config)


def _defaults(config: type) -> dict[str, Any]:
    made = config()
    return {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}


def _text(value: Any) -> str:
    """As one would write it after --set."""
    if isinstance(value, tuple):
        return f"[{','.join(map(_text, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their longest cell; where the terminal is narrower, the widest ones wrap."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    room = min(shutil.get_terminal_size((WIDEST, 24)).columns, WIDEST) - 2 * len(widths)
    while sum(widths) > room and max(widths) > NARROWEST:
        widths[widths.index(max(widths))] -= 1
    for row in (head, ["-" * width for width in widths], *rows):
        cells = [textwrap.wrap(cell, width) or [""] for cell, width in zip(row, widths, strict=True)]
        for line in range(max(map(len, cells))):
            parts = [
                (cell[line] if line < len(cell) else "").ljust(width) for cell, width in zip(cells, widths, strict=True)
            ]
            print(f"  {'  '.join(parts).rstrip()}")
