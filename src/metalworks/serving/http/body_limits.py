"""The second layer: how long a request's body may be, how long it may take, and how much all bodies hold.

It also inflates bodies that were sent with gzip, within the same limits.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import zlib
from collections.abc import Callable

from metalworks.serving.http.asgi import BODY, App, Receive, Scope, Send, send_failure
from metalworks.serving.predict.failures import QUEUE_FULL, Failure
from metalworks.serving.settings import Settings
from metalworks.serving.telemetry.metrics import Stats

HELD = 4
"""Long bodies together may hold this many times the greatest length of one."""
INFLATED_AT_ONCE = 2**18
"""Bytes that are inflated between two looks at the limits."""
_ENCODING = Failure(
    415,
    "BAD_REQUEST",
    "Send the body as it is, or with Content-Encoding: gzip",
    ((b"accept-encoding", b"gzip, identity"),),
)
PART_BYTES = 2**20
"""Bytes that are inflated between two looks at the limits."""
_GZIP, _PLAIN = frozenset({b"gzip", b"x-gzip"}), frozenset({b"", b"identity"})
_ENCODING = Failure(
    415, "BAD_REQUEST", "Send the body as it is, or with Content-Encoding: gzip", ((b"accept-encoding", b"gzip"),)
)
_NO_GZIP = Failure(400, "BAD_REQUEST", "The body is not what its header says: Content-Encoding: gzip")
_SLOW = Failure(408, "DEADLINE_EXCEEDED", "The request body did not come in time", ((b"connection", b"close"),))


class BodyLimits:
    """Reads a request's body, within the limits, into the scope before the application sees the request."""

    def __init__(self, app: App, settings: Settings, stats: Stats, reads_body: Callable[[Scope], bool]) -> None:
        """Leave the body of a request unread, as if it were empty, unless `reads_body` says otherwise."""
        self.app, self.stats, self.reads_body = app, stats, reads_body
        self.most, self.timeout = settings.max_body_bytes, settings.request_timeout
        self.held = 0
        """Bytes of long bodies that are in memory."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        body = b""
        if self.reads_body(scope):
            message = await receive()
            body = message.get("body", b"")
            encoding = _encoding(scope)
            more = message.get("more_body", False)
            if more or encoding not in _PLAIN or len(body) > self.most:
                await self._read_long(scope, body, more, encoding, receive, send)
                return
        scope[BODY] = body
        await self.app(scope, receive, send)

    async def _read_long(
        self, scope: Scope, first: bytes, more: bool, encoding: bytes, receive: Receive, send: Send
    ) -> None:
        """Read a body that comes in parts or is compressed, if there is room for it; hand the request on."""
        most = self.most
        declared = next((int(value) for name, value in scope["headers"] if name == b"content-length"), 0)
        body, held = bytearray(first), len(first)
        more = more and declared <= most
        self.held += held
        try:
            try:
                async with asyncio.timeout(self.timeout):
                    while more and len(body) <= most and self.held <= HELD * most:
                        message = await receive()
                        if message["type"] == "http.disconnect":
                            return
                        body += message.get("body", b"")
                        more = message.get("more_body", False)
                        self.held += len(body) - held
                        held = len(body)
            except TimeoutError:
                self.stats.error("timeout")
                await send_failure(send, _SLOW)
                return
            if len(body) > most or declared > most:
                await self._refuse(send, self._too_long())
            elif more:
                await self._refuse(send, QUEUE_FULL)
            elif encoding not in _PLAIN and encoding not in _GZIP:
                await self._refuse(send, _ENCODING)
            else:
                content = bytes(body)
                body.clear()
                if encoding in _GZIP:
                    inflated = await self._inflated(content)
                    if isinstance(inflated, Failure):
                        await self._refuse(send, inflated)
                        return
                    content = inflated
                    self.held += len(content) - held
                    held = len(content)
                scope[BODY] = content
                await self.app(scope, receive, send)
        finally:
            self.held -= held

    async def _inflated(self, body: bytes) -> bytes | Failure:
        """Return the inflated body, or the failure if it is too long, there is no room for it, or it is malformed."""
        inflated, source = bytearray(), gzip.GzipFile(fileobj=io.BytesIO(body))
        try:
            # In a thread, since a few kilobytes may become many megabytes.
            while part := await asyncio.to_thread(source.read, PART_BYTES):
                inflated += part
                self.held += len(part)
                if len(inflated) > self.most:
                    return self._too_long()
                if self.held > HELD * self.most:
                    return QUEUE_FULL
        except (OSError, EOFError, zlib.error):
            return _NO_GZIP
        finally:
            self.held -= len(inflated)
        return bytes(inflated)

    def _too_long(self) -> Failure:
        return Failure(413, "MAX_READ_SIZE_EXCEEDED", f"The request body is longer than {self.most} bytes")

    async def _refuse(self, send: Send, failure: Failure) -> None:
        if failure.status == 413:
            self.stats.error("too_long")
        else:
            self.stats.failed(failure.status)
        await send_failure(send, failure)


def _encoding(scope: Scope) -> bytes:
    """Return the request's Content-Encoding in lower case; empty if it has none."""
    for name, value in scope["headers"]:
        if name == b"content-encoding":
            encoding: bytes = value
            return encoding.strip().lower()
    return b""
