"""uvicorn's protocol, except that everything written in one turn of the event loop is sent together.

uvicorn writes a response's head and body separately, each with a system call (and a TLS record), and two system calls
cost more than decoding a small request.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_UNREAD = 128 * 2**20
"""Bytes of a refused body that a connection may still send, so that its client gets to read the response."""


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
    """The HTTP implementation that uvicorn is given."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wrap the connection's transport."""
        super().connection_made(_Corked(transport))  # type: ignore[arg-type]
        self._unread = 0

    def on_body(self, body: bytes) -> None:
        """Take a part of a body; close the connection if too much of a refused body still comes."""
        if self.cycle.response_complete:
            self._unread += len(body)
            if self._unread > MOST_UNREAD:
                self.transport.close()
        super().on_body(body)
