"""Who may ask: callers show a bearer token; the server knows only the tokens' digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/ping", "/health"})
"""Paths that anyone may ask: whether the service works."""

_REFUSAL = json.dumps(
    {
        "error_code": "UNAUTHENTICATED",
        "message": "Send a token of this platform: `Authorization: Bearer <token>`",
    }
).encode()


class RequireToken:
    """ASGI middleware that answers 401 to callers without a known token."""

    def __init__(self, app: App, digests: frozenset[str]) -> None:
        """Let callers through to `app` whose token's SHA-256, in hexadecimal, is in `digests`."""
        self.app = app
        self.digests = digests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http" or scope["path"] in OPEN or self._known(scope):
            await self.app(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": _REFUSAL})

    def _known(self, scope: Scope) -> bool:
        for name, value in scope["headers"]:
            if name == b"authorization":
                kind, _, token = value.partition(b" ")
                # Comparing digests tells nothing of the token by the time it takes.
                return kind.lower() == b"bearer" and hashlib.sha256(token.strip()).hexdigest() in self.digests
        return False
