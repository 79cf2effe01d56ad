"""Messages between the HTTP processes and a model's process, over a Unix socket.

A frame is a prefix (length of the rest, number, kind) and a body: the length of a JSON header, the header, bytes.
Both sides use this module; an answer has the number of its question. The standard library alone: the service's main
process, which is to be small, speaks so, too.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from typing import Any

PREFIX = struct.Struct("<IQB")
LENGTH = struct.Struct("<I")

RAW, ARRAYS, FAILED = 1, 2, 3
"""Kinds. RAW: a request's body, or its answer, as HTTP has it. ARRAYS: columns or outputs. FAILED: the model raised."""

MAX_FRAME_BYTES = 2**31


def frame(number: int, kind: int, header: Any, buffers: Sequence[bytes | memoryview] = ()) -> bytes:
    """Return a frame; `header` is anything that JSON holds."""
    head = json.dumps(header, separators=(",", ":")).encode()
    size = LENGTH.size + len(head) + sum(len(each) for each in buffers)
    return b"".join((PREFIX.pack(size, number, kind), LENGTH.pack(len(head)), head, *buffers))


def body_of(payload: memoryview) -> tuple[Any, memoryview]:
    """Return a frame's header and its bytes; the inverse of what `frame` puts behind the prefix."""
    (length,) = LENGTH.unpack_from(payload)
    start = LENGTH.size + length
    return json.loads(bytes(payload[LENGTH.size : start])), payload[start:]


class Buffer:
    """Bytes as they arrive, and the frames in them."""

    def __init__(self, most: int = MAX_FRAME_BYTES) -> None:
        """Start empty; a frame may have `most` bytes."""
        self._bytes, self._most = bytearray(), most

    def feed(self, data: bytes) -> Iterator[tuple[int, int, memoryview]]:
        """Take bytes; yield number, kind and payload of every frame that is complete.

        Raises ValueError for a frame longer than any that this program sends.
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
