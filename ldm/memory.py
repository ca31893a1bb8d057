"""Memory of a program: what glibc's allocator is told, and by which errors torch says that there is none left."""

import ctypes
import os
import sys
from contextlib import suppress

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h
NO_MEMORY = (  # what torch's errors say where there is none left, on Linux and on Windows
    *("out of memory", "allocate memory", "not enough memory", "bad_alloc", "bad alloc"),
    *("memory object", "allocate shared memory"),
)


def keep_freed() -> None:
    """Let the process keep what it frees, and take what is large in large pages; elsewhere than on Linux, nothing.

    A network on a CPU frees and takes the same megabytes many times a second. Given back to the system in between,
    every page of them has to be cleared anew. Not for a library: it is the process's memory, and so a program's to ask.
    """
    if sys.platform != "linux":
        return
    # PyTorch asks for large pages from 2 MB on, if it is told so before its first tensor: no module makes one on import
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    with suppress(OSError, AttributeError):  # another C library than glibc
        library = ctypes.CDLL(None)
        library.mallopt(TRIM_THRESHOLD, 2**31 - 1)
        library.mallopt(MMAP_THRESHOLD, 2**25)  # the most that it takes


def ran_out(error: Exception) -> str:
    """What ``error`` says where it is that memory ran out, which torch tells as RuntimeError; else nothing."""
    words = str(error).splitlines()[0] if str(error) else "out of memory"
    if isinstance(error, MemoryError):
        return words
    return words if isinstance(error, RuntimeError) and any(part in words for part in NO_MEMORY) else ""
