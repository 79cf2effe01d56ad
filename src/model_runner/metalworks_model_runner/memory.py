"""Gives memory back to the operating system."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import threading

_MMAP_THRESHOLD = -3  # its number in <malloc.h>


def trim() -> None:
    """Return memory that loading a model needed; glibc would keep it, often as much as the model itself takes.

    What remains is excluded from garbage collection, since it stays as long as the process.
    """
    gc.collect()
    gc.freeze()
    release()


def release_soon() -> None:
    """Return the memory of a large request once it is answered."""
    timer = threading.Timer(1.0, release)
    timer.daemon = True
    timer.start()


def give_back_at_once() -> None:
    """Have blocks of more than a mebibyte returned as soon as they are free; by default, glibc starts to keep them."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").mallopt(_MMAP_THRESHOLD, 2**20)


def release() -> None:
    """Return memory that is free."""
    if pyarrow := sys.modules.get("pyarrow"):
        pyarrow.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
