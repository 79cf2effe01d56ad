"""The client of a model's process, for the worker processes."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from metalworks_model_runner import frames, packing

from metalworks.serving.sockets import connect

_logger = logging.getLogger("uvicorn.error")

ANSWER_BYTES = 2**29
"""The longest response that is accepted: the model's code may send anything."""
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9.+-]+/[A-Za-z0-9.+-]+")
_WRONG = "its process answers what is no answer"


class ModelFailedError(Exception):
    """The model raised an error."""


class ModelLostError(Exception):
    """The model's process ended during a request, and again when the request was repeated."""


class ModelDownError(Exception):
    """The model's process ended, and no other took its place in time."""


class _Protocol(asyncio.Protocol):
    def __init__(self, client: ModelClient) -> None:
        self._client, self._buffer = client, frames.Buffer(ANSWER_BYTES)

    def data_received(self, data: bytes) -> None:
        for number, kind, payload in self._buffer.feed(data):
            self._client.arrived(number, kind, payload)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (as asyncio calls it)
        self._client.lost()


class ModelClient:
    """Asks one model's process. If that ends, it waits for the next one, which the supervisor starts."""

    RECONNECT_SECONDS = 0.1
    TRIES = 2
    """A request that ended two processes is probably the cause and is not sent a third time."""

    def __init__(self, path: Path, patience: float) -> None:
        """Connect to the socket at `path` on first use; wait up to `patience` seconds for a process that ended."""
        self.path, self.patience = path, patience
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Lock = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[tuple[int, memoryview]]] = {}
        self._given_up: dict[int, int] = {}
        self._arrays_free = asyncio.Event()
        self._arrays_free.set()
        self._closed = False
        self._gone_since: float | None = None

    async def connect(self) -> asyncio.Transport:
        """Return the connection, opened if there is none; raise ModelDownError if that fails."""
        async with self._connecting:
            while self._transport is None or self._transport.is_closing():
                if self._closed:
                    raise ModelLostError("this version is not served any more")
                try:
                    connection = await connect(self.path)
                    loop = asyncio.get_running_loop()
                    transport, _ = await loop.create_unix_connection(lambda: _Protocol(self), sock=connection)
                    self._transport, self._gone_since = transport, None
                except OSError:
                    now = time.monotonic()
                    self._gone_since = self._gone_since or now
                    if now - self._gone_since > self.patience:
                        raise ModelDownError("The model's process ended and does not come back") from None
                    await asyncio.sleep(self.RECONNECT_SECONDS)
            return self._transport

    @property
    def requests_given_up(self) -> int:
        """Number of raw requests that the process still has although nobody waits for them any more."""
        return sum(kind == frames.RAW for kind in self._given_up.values())

    def close(self) -> None:
        """Close the connection."""
        self._closed = True
        if self._transport is not None:
            self._transport.close()

    def lost(self) -> None:
        """Fail the requests that wait, since their process is gone."""
        self._transport = None
        waiting, self._waiting = self._waiting, {}
        self._given_up.clear()
        self._arrays_free.set()
        for future in waiting.values():
            if not future.done():
                future.set_exception(ConnectionResetError())

    def arrived(self, number: int, kind: int, payload: memoryview) -> None:
        """Pass a response to the request that waits for it."""
        future = self._waiting.pop(number, None)
        if future is None:
            self._given_up.pop(number, None)
            if frames.ARRAYS not in self._given_up.values():
                self._arrays_free.set()
        elif not future.done():
            future.set_result((kind, payload))

    async def _ask(self, kind: int, header: Any, buffers: Sequence[bytes | memoryview]) -> tuple[Any, memoryview]:
        for _ in range(self.TRIES):
            transport = self._transport
            if transport is None or transport.is_closing():
                transport = await self.connect()
            number = next(self._numbers)
            future: asyncio.Future[tuple[int, memoryview]] = asyncio.get_running_loop().create_future()
            self._waiting[number] = future
            transport.write(frames.frame(number, kind, header, buffers))
            try:
                answered, payload = await future
            except ConnectionResetError:
                _logger.warning("The model's process ended; repeating its requests")
                await asyncio.sleep(self.RECONNECT_SECONDS)  # a process that is ending may still accept connections
                continue
            except asyncio.CancelledError:
                if number in self._waiting:  # the process does not know, and will respond
                    self._given_up[number] = kind
                    if kind == frames.ARRAYS:
                        self._arrays_free.clear()
                raise
            finally:
                self._waiting.pop(number, None)
            try:
                header, body = frames.body_of(payload)
            except Exception as error:  # malformed bytes raise many types
                raise ModelFailedError(_WRONG) from error
            if answered == frames.FAILED:
                raise ModelFailedError(str(header))
            if answered != kind:
                raise ModelFailedError(_WRONG)
            return header, body
        raise ModelLostError("The model's process ended twice under this request")

    async def arrays(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the model's outputs for these inputs.

        Raises ModelFailedError if the model raises, ModelLostError if its process ends twice, and ModelDownError if no
        process takes its place.
        """
        # Behind arrays that the process computes for nobody, more would only queue, and could not be withdrawn there.
        await self._arrays_free.wait()
        about, buffers = packing.pack(arrays)
        header, body = await self._ask(frames.ARRAYS, about, buffers)
        try:
            return packing.unpack(header, body)
        except Exception as error:  # as above
            raise ModelFailedError(_WRONG) from error

    async def raw(self, body: bytes, about: str | Sequence[Any]) -> tuple[int, str, bytes]:
        """Return status, media type and body as MLflow's scoring server would.

        `about` is the content type, or a list of it and the limits that the request must keep.

        Raises ModelFailedError if MLflow's functions raise, ModelLostError if the process ends twice, and
        ModelDownError if no process takes its place.
        """
        header, answer = await self._ask(frames.RAW, about, [body])
        match header:
            case [int(status), str(media_type)] if 200 <= status < 600 and _MEDIA_TYPE.fullmatch(media_type):
                return status, media_type, bytes(answer)
        raise ModelFailedError(_WRONG)
