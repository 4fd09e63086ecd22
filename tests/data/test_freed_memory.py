"""Memory that was freed: kept without asking the system for fresh pages, or returned."""

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nnssl.data.freed_memory import HUGE_BYTES, HUGE_PAGE
from nnssl.data.parallel import Jobs, map_cases

ROOT = Path(__file__).parents[2]

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


ADVISED = """
from pathlib import Path
from nnssl.data.freed_memory import keep_freed_memory
keep_freed_memory()
keep_freed_memory()  # as in a data worker, whose parent did so before
size, heap, advised = 0, False, 0
for line in Path("/proc/self/smaps").read_text(encoding="ascii").splitlines():
    name, _, value = line.partition(":")
    if "-" in name.split()[0]:  # first line of an area
        heap = line.endswith("[heap]")
    elif name == "Size":
        size = int(value.split()[0])
    elif name == "VmFlags" and heap and "hg" in value.split():
        advised = max(advised, size)
print(advised)
"""


def second_block_lies_in_the_heap() -> bool:
    """glibc gives the first block of 20 MB pages of its own, and by itself keeps what it learns is needed again."""
    for _ in range(2):
        block = torch.ones(5 * 2**20)
        address = block.data_ptr()
        del block
    end_of_heap = ctypes.CDLL(None).sbrk
    end_of_heap.restype, end_of_heap.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]
    return address < int(end_of_heap(0))


def faults(word: str) -> int:
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}  # fixed, or glibc may happen to keep them as well
    command = [sys.executable, "-c", FAULTS, word]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_batches_after_the_first_take_no_fresh_pages() -> None:
    kept, returned = faults("keep"), faults("as it is")
    if not returned:
        pytest.skip("this system does not count the pages it hands out")
    assert kept < 0.05 * returned, (kept, returned)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_the_heap_asks_for_huge_pages() -> None:
    done = subprocess.run([sys.executable, "-c", ADVISED], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 >= HUGE_BYTES - 2 * HUGE_PAGE  # it neither begins nor ends on a huge page


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to return memory")
def test_workers_that_go_through_cases_give_blocks_no_place_in_the_heap() -> None:
    cases: Jobs = {"first": (), "second": ()}
    assert map_cases(second_block_lies_in_the_heap, cases, processes=2, title="").results == dict.fromkeys(cases, False)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    code = f"from {__name__} import second_block_lies_in_the_heap as asked; print(asked())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "True"  # without being told
