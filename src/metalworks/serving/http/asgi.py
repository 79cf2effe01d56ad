"""ASGI's types, and messages that the layers in front of the application send."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from metalworks.serving.predict.failures import Failure, Headers

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY = "metalworks.body"
"""Key in the scope of a request for its body, once that was read: a small request is answered sooner than by `replay`.
"""


_JSON = (b"content-type", b"application/json")


def start_response(status: int, media_type: str, body: bytes, headers: Headers = ()) -> Message:
    """Return the message that comes before a response's body."""
    kind = _JSON if media_type == "application/json" else (b"content-type", f"{media_type}; charset=utf-8".encode())
    length = (b"content-length", b"%d" % len(body))
    return {"type": "http.response.start", "status": status, "headers": [kind, length, *headers]}


async def send_failure(send: Send, failure: Failure) -> None:
    """Send an error response."""
    await send(start_response(failure.status, "application/json", failure.body, failure.headers))
    await send({"type": "http.response.body", "body": failure.body})


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body that was read already, and then whatever follows it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return messages.pop() if messages else await receive()

    return received
