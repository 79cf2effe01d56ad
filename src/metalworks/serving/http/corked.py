"""uvicorn's protocol, with what is written in one turn of the loop sent at once.

uvicorn writes an answer's head and its body one after the other, each a call to the kernel (and a record of TLS), and
two calls to the kernel cost more than decoding a small request.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_UNREAD = 128 * 2**20
"""What a connection may send of bodies that were refused, so that whoever sends one comes to read why."""


class _Corked:
    """A transport that joins writes."""

    __slots__ = ("_call_soon", "_parts", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._parts: list[bytes] = []
        self._call_soon = asyncio.get_running_loop().call_soon

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._call_soon(self._flush)
        self._parts.append(data)

    def _flush(self) -> None:
        if self._parts:
            parts, self._parts = self._parts, []
            self._transport.write(parts[0] if len(parts) == 1 else b"".join(parts))

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class CorkedProtocol(HttpToolsProtocol):
    """What uvicorn is given as its HTTP implementation."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection."""
        super().connection_made(_Corked(transport))  # type: ignore[arg-type]
        self._unread = 0

    def on_body(self, body: bytes) -> None:
        """Take a part of a body; one that nobody reads any more, since it was refused, is not waited for for ever."""
        if self.cycle.response_complete:
            self._unread += len(body)
            if self._unread > MOST_UNREAD:
                self.transport.close()
        super().on_body(body)
