"""The second layer: how long a request's body may be, how long it may take, and how much all bodies hold."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from metalworks.serving.http.asgi import BODY, App, Receive, Scope, Send, send_failure
from metalworks.serving.predict.failures import QUEUE_FULL, Failure
from metalworks.serving.settings import Settings
from metalworks.serving.telemetry.metrics import Stats

HELD = 4
"""Long bodies together may hold this many times the greatest length of one."""
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
            if message.get("more_body") or len(body) > self.most:
                await self._read_long(scope, body, receive, send)
                return
        scope[BODY] = body
        await self.app(scope, receive, send)

    async def _read_long(self, scope: Scope, first: bytes, receive: Receive, send: Send) -> None:
        """Read a body that comes in parts, unless it is too long or there is no room for it; hand the request on."""
        most = self.most
        declared = next((int(value) for name, value in scope["headers"] if name == b"content-length"), 0)
        body, more, held = bytearray(first), declared <= most, len(first)
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
                self.stats.error("too_long")
                text = f"The request body is longer than {most} bytes"
                await send_failure(send, Failure(413, "MAX_READ_SIZE_EXCEEDED", text))
            elif more:
                self.stats.error("queue_full")
                await send_failure(send, QUEUE_FULL)
            else:
                scope[BODY] = bytes(body)
                body.clear()
                await self.app(scope, receive, send)
        finally:
            self.held -= held
