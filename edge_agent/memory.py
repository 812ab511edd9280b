"""Memory that was freed, given back to the system.

glibc keeps what is freed for whoever asks next, and after a large graph that is much: its threshold, beyond
which memory comes from the system each time, has grown with what was freed, and a small block that lies
above a large hole holds it (mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD). A few megabytes of weights
that were loaded and unloaded twenty times so left seventy behind. Models come and go seldom: then it is worth
the milliseconds of looking through the heaps.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


def give_back() -> None:
    """Give the system what is free in this process; nothing where the C library cannot (only glibc can).

    Takes milliseconds, during which other threads may wait for memory, but not for Python's lock.
    """
    _trim()(0)


@functools.cache
def _trim() -> Callable[[int], int]:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return lambda keep: 0
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    found: Callable[[int], int] = trim
    return found
