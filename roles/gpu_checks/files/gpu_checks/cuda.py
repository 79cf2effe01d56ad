"""The driver's library."""

from __future__ import annotations

import ctypes
from typing import Any

FULL = 2  # CUDA_ERROR_OUT_OF_MEMORY
IN_USE = 46  # CUDA_ERROR_DEVICE_UNAVAILABLE
NOT_READY = 802  # CUDA_ERROR_SYSTEM_NOT_READY


class Cuda:
    """The driver's library, whose functions return an error number."""

    def __init__(self, library: Any) -> None:
        """Take the loaded library."""
        self.library = library

    def __call__(self, name: str, *arguments: Any) -> None:
        """Call a function; raise OSError with the error's name if it fails."""
        if not (code := getattr(self.library, name)(*arguments)):
            return
        word = ctypes.c_char_p()
        self.library.cuGetErrorName(code, ctypes.byref(word))
        raise OSError(code, f"{name}: {word.value.decode() if word.value else code}")
