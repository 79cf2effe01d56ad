"""The hot route: POST /invocations, in front of everything else that the application does."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

from metalworks.serving.arrays import Arrays
from metalworks.serving.predict.batching import QueueFullError
from metalworks.serving.predict.client import ModelDownError, ModelFailedError, ModelLostError
from metalworks.serving.predict.codecs.mlflow_request import RequestRefusedError
from metalworks.serving.predict.decoding import LIGHT_BYTES
from metalworks.serving.predict.shadow import Decode, Shadow
from metalworks.serving.predict.variants import Route, Variant
from metalworks.serving.settings import Settings
from metalworks.serving.telemetry.metrics import Stats
from metalworks.serving.telemetry.prediction_log import Log

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Answer = tuple[int, str, bytes]
"""Status, media type, body."""

JSON = "application/json"
PATH = "/invocations"
OPEN = frozenset({"/ping", "/health", "/docs", "/v2/health/live", "/v2/health/ready"})
"""Paths that anyone may ask: whether the service works, and the page that asks for a token itself."""
_OPEN_FILES = "/docs/"

HELD = 4
"""Bodies of the greatest length that may be here at the same time; shorter ones, as many as are as long together."""
CODES = {
    400: "BAD_REQUEST",
    413: "MAX_READ_SIZE_EXCEEDED",
    500: "INTERNAL_ERROR",
    503: "RESOURCE_EXHAUSTED",
    504: "DEADLINE_EXCEEDED",
}
CHECK = b"metalworks-check"
"""Header of a request that only tries whether the service works: no shadow gets a copy of it, and it is not logged."""
_DECODED = frozenset({b"application/json", b"application/json; charset=utf-8", b"application/json;charset=utf-8"})
_JSON_HEADERS = ((b"content-type", b"application/json"),)


def error(code: str, message: str, path: str = "") -> bytes:
    """Return an error in the form that MLflow's clients read, and below /v2 those of its protocol, too."""
    more = {"error": message} if path.startswith("/v2") else {}
    return json.dumps({"error_code": code, "message": message, **more}).encode()


_UNKNOWN = error("UNAUTHENTICATED", "Send a token of this platform: `Authorization: Bearer <token>`")
_NO_MODEL = error("TEMPORARILY_UNAVAILABLE", "The model is not loaded yet")
_FULL = error("RESOURCE_EXHAUSTED", "Too many requests wait for the model; try again")
_LATE = error("DEADLINE_EXCEEDED", "Request processing time exceeded limit")  # as MLflow words it
_SLOW = error("DEADLINE_EXCEEDED", "The request body did not come in time")
_METHOD = error("BAD_REQUEST", "Method Not Allowed")
_LOST = error("INTERNAL_ERROR", "The model's process ended, twice, while it worked on this request")
_DOWN = error("TEMPORARILY_UNAVAILABLE", "The model's process ended and does not come back; the journal says why")


class Invocations:
    """ASGI application: tokens for everything, predictions by itself, the rest by the application behind it."""

    def __init__(
        self, app: App, settings: Settings, route: Route, stats: Stats, shadow: Shadow, log: Log | None
    ) -> None:
        """Answer by `route`; count in `stats`; hand copies to `shadow` and `log`."""
        self.app, self.settings, self.route, self.stats = app, settings, route, stats
        self.shadow, self.log = shadow, log
        self.digests = settings.tokens_sha256
        self.held = 0
        """Bytes of the long bodies that are here."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        content_type = b""
        known, check = not self.digests, False
        for name, value in scope["headers"]:
            if name == b"content-type":
                content_type = value
            elif name == b"authorization" and not known:
                known = self._known(value)
            elif name == CHECK:
                check = True
        if not known and path not in OPEN and not path.startswith(_OPEN_FILES):
            self.stats.error("unauthenticated")
            await _send(send, 401, JSON, _UNKNOWN, (b"www-authenticate", b"Bearer"))
            return
        if path != PATH and (path in OPEN or path.startswith(_OPEN_FILES)):
            await self.app(scope, _again(b"", receive), send)  # nobody's body is read for these
            return
        if path == PATH and scope["method"] != "POST":
            await _send(send, 405, JSON, _METHOD, (b"allow", b"POST"))
            return
        message = await receive()
        body = message.get("body", b"")
        if message.get("more_body") or len(body) > self.settings.max_body_bytes:
            await self._long(scope, body, receive, send, content_type, check)
        else:
            await self._whole(scope, body, receive, send, content_type, check)

    async def _whole(
        self, scope: Scope, body: bytes, receive: Receive, send: Send, content_type: bytes, check: bool
    ) -> None:
        """Answer a request whose body is there."""
        path = scope["path"]
        if path != PATH:
            infers = scope["method"] == "POST" and path.startswith("/v2/") and path.endswith("/infer")
            await self.app(scope, _again(body, receive), self._counting(send) if infers else send)
            return
        began = time.perf_counter()
        variant = self.route.choose()
        if variant is None:
            self.stats.error("no_model")
            await _send(send, 503, JSON, _NO_MODEL, (b"retry-after", b"5"))
            return
        version = variant.version
        arrays: Arrays | None = None
        if version.decode is not None and content_type in _DECODED:
            try:
                arrays = (
                    version.decode(body)
                    if len(body) <= LIGHT_BYTES
                    else await self.decoded(variant, version.arrays_of(body))
                )
            except RequestRefusedError as refusal:
                variant.series.observe(time.perf_counter() - began, refusal.status)
                self.stats.error(_kind(refusal.status))
                await _send(send, refusal.status, JSON, error(CODES[refusal.status], refusal.message))
                return
        outputs: Arrays | None = None
        if arrays is not None and version.inline is not None and len(arrays[0]) <= version.inline_rows:
            # Quick enough not to leave the loop: no task, no future, no batch.
            try:
                outputs = version.inline(arrays)
                answer = version.write(outputs)  # type: ignore[misc]
            except Exception:  # what the runtime raises, MLflow's own functions are to judge
                arrays = outputs = None
        if outputs is not None:
            seconds = time.perf_counter() - began
            variant.series.observe(seconds, 200)
            await send({"type": "http.response.start", "status": 200, "headers": _headers(answer)})
            await send({"type": "http.response.body", "body": answer})
            if not check and (self.route.shadow is not None or self.log is not None):
                self.copy(variant, (arrays, outputs), (body, content_type), (200, answer, seconds))
            return
        await self._slowly(variant, arrays, body, content_type, began, send, check)

    async def _long(
        self, scope: Scope, first: bytes, receive: Receive, send: Send, content_type: bytes, check: bool
    ) -> None:
        """Read a body that comes in parts, unless it is longer than it may be, or than there is room for; answer it."""
        most = self.settings.max_body_bytes
        declared = next((int(value) for name, value in scope["headers"] if name == b"content-length"), 0)
        body, more, held = bytearray(first), declared <= most, len(first)
        self.held += held
        try:
            async with asyncio.timeout(self.settings.request_timeout):
                while more and len(body) <= most and self.held <= HELD * most:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    self.held += len(body) - held
                    held = len(body)
            if len(body) > most or declared > most:
                self.stats.error("too_long")
                text = f"The request body is longer than {most} bytes"
                await _send(send, 413, JSON, error("MAX_READ_SIZE_EXCEEDED", text))
            elif more:
                self.stats.error("queue_full")
                await _send(send, 503, JSON, _FULL, (b"retry-after", b"1"))
            else:
                whole = bytes(body)
                body.clear()
                await self._whole(scope, whole, receive, send, content_type, check)
        except TimeoutError:  # in what is above: the rest sees to its own
            self.stats.error("timeout")
            await _send(send, 408, JSON, _SLOW, (b"connection", b"close"))
        finally:
            self.held -= held

    async def decoded(self, variant: Variant, work: Coroutine[Any, Any, Any]) -> Any:
        """Return a decoded long request; raise RequestRefusedError if it is malformed, or decoding takes too long."""
        variant.working += 1
        try:
            async with asyncio.timeout(self.settings.request_timeout):
                return await work
        except TimeoutError:
            raise RequestRefusedError(504, "Request processing time exceeded limit") from None
        except ModelLostError as lost:
            raise RequestRefusedError(500, str(lost)) from lost
        finally:
            variant.working -= 1

    def _known(self, authorization: bytes) -> bool:
        kind, _, token = authorization.partition(b" ")
        # Comparing digests tells nothing of the token by the time it takes.
        return kind.lower() == b"bearer" and hashlib.sha256(token.strip()).hexdigest() in self.digests

    async def _slowly(
        self,
        variant: Variant,
        arrays: Arrays | None,
        body: bytes,
        content_type: bytes,
        began: float,
        send: Send,
        check: bool,
    ) -> None:
        variant.working += 1
        try:
            answer, outputs = await self.ask(variant, arrays, body, content_type.decode("latin-1"))
        finally:
            variant.working -= 1
        status, media_type, text = answer
        seconds = time.perf_counter() - began
        (variant.series if outputs is not None else variant.raw_series).observe(seconds, status)
        if status >= 400:
            self.stats.error(_kind(status))
        more = ((b"retry-after", b"1"),) if status == 503 else ()
        await _send(send, status, media_type, text, *more)
        if check:
            return
        decoded = arrays if outputs is not None else None
        self.copy(variant, (decoded, outputs), (body, content_type), (status, text, seconds))

    def _counting(self, send: Send) -> Send:
        """Return what hands on the answer of another protocol, whoever made it, and counts it if it is an error."""

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                status = message["status"]
                self.stats.error("no_model" if status == 503 and self.route.champion is None else _kind(status))
            await send(message)

        return counted

    def copy(
        self,
        variant: Variant,
        values: tuple[Arrays | None, Arrays | None],
        request: tuple[bytes, bytes],
        answer: tuple[int, bytes, float],
        decode: Decode | None = None,
    ) -> None:
        """Hand a request that was answered to the shadow and to the log.

        `values`: inputs and outputs, where it was decoded; `request`: body and content type; `answer`: status, body,
        seconds; `decode` makes another version's inputs of a request that came in another protocol.
        """
        arrays, outputs = values
        status, text, seconds = answer
        if self.route.shadow is not None and status == 200:
            self.shadow.copy(self.route.shadow, outputs, request, decode)
        if self.log is not None and self.log.takes():
            self.log.add(variant.source, arrays, request[0], status, text, seconds)

    async def ask(
        self, variant: Variant, arrays: Arrays | None, body: bytes, content_type: str
    ) -> tuple[Answer, Arrays | None]:
        """Return the answer to a request, and the outputs it was made of where MLflow did not answer itself."""

        async def work() -> tuple[Answer, Arrays | None]:
            if arrays is not None:
                try:
                    outputs = await variant.version.outputs(arrays)
                    return (200, JSON, variant.version.write(outputs)), outputs  # type: ignore[misc]
                except ModelFailedError:
                    pass  # alone, and by MLflow's own functions, it says why
            return await variant.version.raw(body, content_type), None

        try:
            return await self._in_time(work())
        except ModelFailedError as failed:
            return (500, JSON, error("INTERNAL_ERROR", f"The model raised {failed}")), None

    async def ask_arrays(self, variant: Variant, arrays: Arrays) -> tuple[Answer, Arrays | None]:
        """Return the outputs for rows that came in another protocol, or the error to answer with."""

        async def work() -> tuple[Answer, Arrays | None]:
            return (200, JSON, b""), await variant.version.outputs(arrays)

        try:
            return await self._in_time(work())
        except ModelFailedError as failed:
            return (400, JSON, error("BAD_REQUEST", f"The model refuses these values: {failed}")), None

    async def _in_time(self, work: Coroutine[Any, Any, tuple[Answer, Arrays | None]]) -> tuple[Answer, Arrays | None]:
        """Return what the model answers, or the error of a request that it had no time, place or process for."""
        try:
            async with asyncio.timeout(self.settings.request_timeout):
                return await work
        except QueueFullError:
            return (503, JSON, _FULL), None
        except TimeoutError:
            return (504, JSON, _LATE), None
        except ModelLostError:
            return (500, JSON, _LOST), None
        except ModelDownError:
            return (502, JSON, _DOWN), None


def _again(body: bytes, receive: Receive) -> Receive:
    """Return what hands on a body that is here already, and then what comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again


def _kind(status: int) -> str:
    return {413: "too_much", 503: "queue_full", 504: "timeout"}.get(status, "refused" if status < 500 else "failed")


def _headers(body: bytes) -> list[tuple[bytes, bytes]]:
    return [*_JSON_HEADERS, (b"content-length", str(len(body)).encode())]


async def _send(send: Send, status: int, media_type: str, body: bytes, *more: tuple[bytes, bytes]) -> None:
    content_type = media_type if media_type == JSON else f"{media_type}; charset=utf-8"
    headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
