"""The table of an import: what was taken, as which case, and what was left out and why."""

from collections.abc import Sequence

from nnssl.data.intake.choose import Taken, place_of
from nnssl.data.intake.collection import LeftOut
from nnssl.data.intake.examine import Volume

SHOWN = 40  # lines per part in the terminal; the file holds all
WIDTH = 60  # characters of a place


def table(taken: Taken, shown: int | None = None) -> str:
    """Both parts as text; damaged scans come first among those left out.

    Args:
        shown: lines per part, None for all.
    """
    cases = [_case_line(name, volume) for name, volume in taken.cases.items()]
    out = sorted(taken.left_out, key=lambda line: not line.damaged)
    parts = [f"taken: {len(cases)}", *_shortened(_columns(cases), shown)]
    if out:
        bad = sum(line.damaged for line in out)
        parts += ["", f"left out: {len(out)} line(s), {bad} of them damaged"]
        parts += _shortened(_columns([_left_out_line(line) for line in out]), shown)
    return "\n".join(parts)


def _case_line(name: str, volume: Volume) -> tuple[str, ...]:
    shape = "x".join(map(str, volume.shape))
    spacing = " x ".join(f"{side:.3g}" for side in volume.spacing_mm)
    return name, shape, f"{spacing} mm", printable(volume.source.modality) or "-", printable(place_of(volume))


def _left_out_line(line: LeftOut) -> tuple[str, ...]:
    return "damaged" if line.damaged else "other", printable(line.place)[-WIDTH:], printable(line.reason)


def printable(text: str) -> str:
    """Text that any terminal prints: file names may hold line breaks and bytes that are no UTF-8."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows with aligned columns, the last one free."""
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(len(rows[0]) - 1)] if rows else []
    return [
        "  " + "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    ]


def _shortened(lines: list[str], shown: int | None) -> list[str]:
    if shown is None or len(lines) <= shown:
        return lines
    return [*lines[:shown], f"  ... and {len(lines) - shown} more"]
