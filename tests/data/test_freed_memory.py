"""Memory that was freed is used again without asking the system for fresh pages."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from nnssl.data.freed_memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def batch():
    return [torch.ones(40, 2**17) for _ in range(4)]  # four tensors of 20 MB
for _ in range(4):
    batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(word: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, word], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_batches_after_the_first_take_no_fresh_pages() -> None:
    kept, returned = faults("keep"), faults("as it is")
    assert kept < 0.05 * returned, (kept, returned)
