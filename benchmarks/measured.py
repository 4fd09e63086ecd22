"""Run a command, keep its output in a log, and append its seconds and peak memory to a table.

Usage: measured.py TABLE LOG COMMAND ...
"""

import resource
import subprocess
import sys
import time
from pathlib import Path


def main() -> int:
    """Returns the command's exit code; prints the end of its log where it failed."""
    table, log, *command = sys.argv[1:]
    started = time.monotonic()
    with Path(log).open("wb") as stream:
        code = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False).returncode
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = (
        f"{Path(log).stem}: {time.monotonic() - started:.0f} s wall, {usage.ru_utime + usage.ru_stime:.0f} s CPU, "
        f"{usage.ru_maxrss / 2**20:.1f} GiB peak of one process, exit code {code}"
    )
    print(line, flush=True)
    with Path(table).open("a", encoding="utf-8") as stream_:
        stream_.write(line + "\n")
    if code:
        print("\n".join(Path(log).read_text(encoding="utf-8", errors="replace").splitlines()[-20:]))
    return code


if __name__ == "__main__":
    sys.exit(main())
