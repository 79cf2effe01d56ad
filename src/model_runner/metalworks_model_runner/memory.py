"""Gives memory back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import threading

_MMAP_THRESHOLD = -3  # as <malloc.h> has it


def trim() -> None:
    """Return what was needed to load a model and is free now; glibc would keep it, often as much as the model takes.

    What is left is moved out of the garbage collector's way: it stays for as long as the process does.
    """
    gc.collect()
    gc.freeze()
    release()


def release_soon() -> None:
    """Give back what a large request needs when it is answered."""
    timer = threading.Timer(1.0, release)
    timer.daemon = True
    timer.start()


def give_back_at_once() -> None:
    """Have all that is larger than a mebibyte given back when it is free; glibc learns to keep it."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").mallopt(_MMAP_THRESHOLD, 2**20)


def release() -> None:
    """Return what a large request needed and is free now."""
    if pyarrow := sys.modules.get("pyarrow"):
        pyarrow.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
