"""Messages between worker processes and a model's process over a Unix socket.

A frame is a prefix (length of the rest, number, kind) and a body (length of a JSON header, the header, bytes). Both
sides use this module; a response has the number of its request. Imports the standard library alone, since the
supervisor uses it, too.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from typing import Any

PREFIX = struct.Struct("<IQB")
LENGTH = struct.Struct("<I")

RAW, ARRAYS, FAILED = 1, 2, 3
"""Kinds. RAW: the body of an HTTP request or response. ARRAYS: inputs or outputs. FAILED: the model raised an error."""

MAX_FRAME_BYTES = 2**31


def frame(number: int, kind: int, header: Any, buffers: Sequence[bytes | memoryview] = ()) -> bytes:
    """Return a frame; `header` is any JSON value."""
    head = json.dumps(header, separators=(",", ":")).encode()
    size = LENGTH.size + len(head) + sum(len(each) for each in buffers)
    return b"".join((PREFIX.pack(size, number, kind), LENGTH.pack(len(head)), head, *buffers))


def body_of(payload: memoryview) -> tuple[Any, memoryview]:
    """Return header and bytes from a frame's payload."""
    (length,) = LENGTH.unpack_from(payload)
    start = LENGTH.size + length
    return json.loads(bytes(payload[LENGTH.size : start])), payload[start:]


class Buffer:
    """Collects bytes as they arrive and splits them into frames."""

    def __init__(self, most: int = MAX_FRAME_BYTES) -> None:
        """Accept frames of at most `most` bytes."""
        self._bytes, self._most = bytearray(), most

    def feed(self, data: bytes) -> Iterator[tuple[int, int, memoryview]]:
        """Add bytes; yield number, kind and payload of each complete frame.

        Raises ValueError for a frame that is too long.
        """
        self._bytes += data
        while len(self._bytes) >= PREFIX.size:
            size, number, kind = PREFIX.unpack_from(self._bytes)
            if size > self._most:
                raise ValueError(f"a frame of {size} bytes")
            end = PREFIX.size + size
            if len(self._bytes) < end:
                return
            payload = bytes(self._bytes[PREFIX.size : end])
            del self._bytes[:end]
            yield number, kind, memoryview(payload)
