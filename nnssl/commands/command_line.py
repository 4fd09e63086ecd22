"""What all commands share: bad input ends in one line and exit code 2, failed cases in exit code 1."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def run(work: Callable[[argparse.Namespace], int], parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Parse, work, and turn bad input into one line on stderr.

    Returns:
        0 all well, 1 some cases failed and were listed, 2 bad input, 3 the machine failed (memory, a worker process,
        the device). NNSSL_DEBUG=1 shows the traceback instead of one line.
    """
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return work(arguments)
    except (ValueError, OSError) as error:
        if os.environ.get("NNSSL_DEBUG"):
            raise
        text = (
            error.strerror if isinstance(error, OSError) and error.strerror and error.filename is None else str(error)
        )
        print(f"{parser.prog}: error: {' '.join(text.split())}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if os.environ.get("NNSSL_DEBUG"):
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(f"{parser.prog}: stopped: {first} (NNSSL_DEBUG=1 shows where)", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped by the user", file=sys.stderr)
        return 130


def parser(prog: str, description: str, examples: str) -> argparse.ArgumentParser:
    """An argument parser whose help ends with examples."""
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_device(command: argparse.ArgumentParser) -> None:
    """The -device flag of nnU-Net; the default is a GPU where there is one."""
    command.add_argument(
        "-device", choices=("cuda", "cpu", "mps"), help="[OPTIONAL] default: cuda where available, else cpu"
    )


def device(arguments: argparse.Namespace) -> "torch.device":
    """The device asked for, or the best one here."""
    import torch  # here: worker processes of commands without networks start in a tenth of the time

    name = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("-device cuda: no CUDA device is available here; use -device cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError("-device mps: no Apple GPU is available here; use -device cpu")
    return torch.device(name)
