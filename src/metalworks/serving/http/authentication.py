"""The first layer: who may ask."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

from metalworks.serving.http.asgi import App, Receive, Scope, Send, send_failure
from metalworks.serving.predict.failures import Failure
from metalworks.serving.telemetry.metrics import Stats

_UNAUTHENTICATED = Failure(
    401,
    "UNAUTHENTICATED",
    "Send a token of this platform: `Authorization: Bearer <token>`",
    ((b"www-authenticate", b"Bearer"),),
)


class Authentication:
    """Answers 401 unless a request has a token of this platform or its path is open to anyone."""

    def __init__(self, app: App, digests: frozenset[str], stats: Stats, is_open: Callable[[str], bool]) -> None:
        """Compare tokens by their SHA-256 with `digests`."""
        self.app, self.digests, self.stats, self.is_open = app, digests, stats, is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        for name, value in scope.get("headers", ()):
            if name == b"authorization" and self._is_known(value):
                await self.app(scope, receive, send)
                return
        if scope["type"] != "http" or self.is_open(scope["path"]):
            await self.app(scope, receive, send)
            return
        self.stats.error("unauthenticated")
        await send_failure(send, _UNAUTHENTICATED)

    def _is_known(self, authorization: bytes) -> bool:
        kind, _, token = authorization.partition(b" ")
        # The time that comparing digests takes says nothing about the token.
        return kind.lower() == b"bearer" and sha256(token.strip()).hexdigest() in self.digests
