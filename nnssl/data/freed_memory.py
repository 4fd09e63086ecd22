"""What becomes of large blocks of memory that a process has freed, with glibc.

A process that makes batches, all of one size, keeps them, on huge pages where the system has them: glibc returns them
and asks for them again, the system then hands out every page of 4 KiB as zeros, and the processor looks each of them
up. Reading and augmenting crops takes a fifth less time without the first and another twentieth without the second.

A process that goes through cases of all sizes returns them: what glibc keeps of one case has holes where the next one
does not fit (docs/preprocessing.md, "Measured").
"""

import ctypes
import mmap
import sys
from contextlib import suppress

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # numbers of malloc.h
_USUAL_PAD = 2**17  # glibc's
RETURNED_BLOCK = 2**20
KEPT_BYTES, LARGEST_BLOCK = 2**30, 2**25  # free at the end of the heap; glibc allows 32 MiB for the second
HUGE_BYTES, HUGE_PAGE = 2**29, 2**21  # addresses that are set aside for huge pages: memory only once it is used


def keep_freed_memory(_worker: int = 0) -> None:
    """From now on blocks up to 32 MiB are reused where up to 1 GiB of them is free; without glibc nothing changes."""
    if sys.platform != "linux":
        return
    glibc = ctypes.CDLL(None)
    if hasattr(glibc, "mallopt") and hasattr(glibc, "sbrk"):
        glibc.mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
        glibc.mallopt(_MMAP_THRESHOLD, LARGEST_BLOCK)
        _advise_huge_pages(glibc)


def return_freed_memory() -> None:
    """From now on blocks of 1 MiB or more go back to the system when they are freed; without glibc nothing changes.

    By itself glibc learns from each block that it returns to keep such blocks.
    """
    if sys.platform != "linux":
        return
    glibc = ctypes.CDLL(None)
    if hasattr(glibc, "mallopt"):
        glibc.mallopt(_MMAP_THRESHOLD, RETURNED_BLOCK)


def _advise_huge_pages(glibc: ctypes.CDLL) -> None:
    """Let the heap grow by `HUGE_BYTES` of addresses and ask for huge pages there; a system may ignore that."""
    glibc.sbrk.restype, glibc.sbrk.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]
    glibc.malloc.restype, glibc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    glibc.free.argtypes = [ctypes.c_void_p]
    glibc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    begin = glibc.sbrk(0)
    blocks: list[int] = []
    glibc.mallopt(_TOP_PAD, HUGE_BYTES)
    while glibc.sbrk(0) == begin and len(blocks) * (LARGEST_BLOCK // 2) < KEPT_BYTES:  # until it has grown
        blocks.append(glibc.malloc(LARGEST_BLOCK // 2))
    for block in blocks:
        glibc.free(block)
    glibc.mallopt(_TOP_PAD, _USUAL_PAD)
    aligned = -(-begin // HUGE_PAGE) * HUGE_PAGE
    with suppress(AttributeError):  # MADV_HUGEPAGE: kernels that know it
        glibc.madvise(aligned, max(0, glibc.sbrk(0) - aligned), mmap.MADV_HUGEPAGE)
