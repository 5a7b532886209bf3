"""Keeps freed memory in the process, so that large temporaries are not faulted in anew on every step."""

import ctypes
import sys

# glibc's mallopt parameters, from malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Asks glibc to serve large blocks from the heap and never to give the heap back; says whether it did.

    By default every block beyond 32 MB is mapped and unmapped each time, and each of its pages is faulted in and zeroed
    again: measured, 10% of a step at d = 384, n = 3072 and 40% at d = 1280, n = 20480. The process keeps its peak memory.
    Does nothing where the C library is not glibc.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # each call returns 1 when it was heard
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, 2**31 - 1), mallopt(_TOP_PAD, 64 << 20)])
