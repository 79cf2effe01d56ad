"""Encodes arrays for the messages of the module frames."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

_TEXT = "text"


def pack(arrays: Sequence[np.ndarray]) -> tuple[list[Any], list[bytes | memoryview]]:
    """Return a description of the arrays for a header, and their bytes. Arrays of objects hold strings or null."""
    about: list[Any] = []
    buffers: list[bytes | memoryview] = []
    for array in arrays:
        if array.dtype.kind in "OU":
            data: bytes | memoryview = json.dumps(array.tolist()).encode()
            about.append([_TEXT, list(array.shape), len(data)])
        else:
            data = np.ascontiguousarray(array).data.cast("B") if array.size else b""
            about.append([array.dtype.str, list(array.shape), array.nbytes])
        buffers.append(data)
    return about, buffers


def unpack(about: Sequence[Any], data: memoryview) -> list[np.ndarray]:
    """Return the arrays that were packed."""
    arrays, start = [], 0
    for dtype, shape, size in about:
        part = data[start : start + size]
        start += size
        if dtype == _TEXT:
            # Its size is that of the data; a wrong shape raises.
            array = np.array(json.loads(bytes(part)), dtype=object).reshape(shape)
        else:
            array = np.frombuffer(part, dtype=np.dtype(dtype)).reshape(shape)
        arrays.append(array)
    return arrays
