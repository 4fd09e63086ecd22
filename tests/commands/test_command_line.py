"""What all commands share: exit codes, and one line on stderr."""

import argparse
from collections.abc import Callable

import pytest

from nnssl.commands import command_line


def _run(work: Callable[[argparse.Namespace], int]) -> int:
    return command_line.run(work, command_line.parser("nnssl_toy", "toy", "  nnssl_toy"), [])


def _raise(error: Exception) -> Callable[[argparse.Namespace], int]:
    def work(_: argparse.Namespace) -> int:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("crop 3:\n  is\n  bad"), 2, "nnssl_toy: error: crop 3: is bad"),
        (OSError(28, "writing x: the disk is full"), 2, "nnssl_toy: error: writing x: the disk is full"),
        (RuntimeError("out of memory\nmore"), 3, "nnssl_toy: stopped: out of memory (NNSSL_DEBUG=1 shows where)"),
        (MemoryError(), 3, "nnssl_toy: stopped: MemoryError (NNSSL_DEBUG=1 shows where)"),
    ],
)
def test_an_error_is_one_line_and_its_exit_code(
    error: Exception, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(_raise(error)) == code
    assert capsys.readouterr().err == line + "\n"


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNSSL_DEBUG", "1")
    with pytest.raises(ValueError, match="bad"):
        _run(_raise(ValueError("bad")))


def test_an_absent_device_is_bad_input() -> None:
    import torch

    for name, present in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
        if not present:
            with pytest.raises(ValueError, match=f"-device {name}: no .* is available here; use -device cpu"):
                command_line.device(argparse.Namespace(device=name))
