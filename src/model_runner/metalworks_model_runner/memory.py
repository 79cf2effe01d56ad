"""Gives memory back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import gc


def trim() -> None:
    """Return what was needed to load a model and is free now; glibc would keep it, often as much as the model takes.

    What is left is moved out of the garbage collector's way: it stays for as long as the process does.
    """
    gc.collect()
    gc.freeze()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
