"""Micro-batching: requests that wait at the same time go through the model together."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

import numpy as np

from metalworks.serving.arrays import Arrays
from metalworks.serving.predict.client import ModelFailedError


class QueueFullError(Exception):
    """Too many requests wait."""


class Batcher:
    """Joins rows into batches and passes them to `ask`, one batch at a time.

    While the model is idle, no request is delayed: a batch leaves at the end of the event loop's turn in which its
    first request came. Right after a batch, the callers that were answered tend to send again at once. So the next
    batch waits for as many requests, but only for the share `PATIENCE` of the time that the last one took. Without
    this, callers would stay split into groups that take turns.
    """

    PATIENCE = 0.15

    def __init__(
        self,
        ask: Callable[[Arrays], Awaitable[list[np.ndarray]]],
        max_rows: int,
        max_queue: int,
        observe: Callable[[int], None],
        timeout: float | None = None,
    ) -> None:
        """Pass on at most `max_rows` rows at a time, and let at most `max_queue` requests wait.

        `observe` is called with the rows of each batch. A batch is given up after `timeout` seconds, when nobody waits
        for it any more.
        """
        self._ask, self._observe, self._timeout = ask, observe, timeout
        self.max_rows, self.max_queue = max_rows, max_queue
        self._queue: deque[tuple[Arrays, asyncio.Future[list[np.ndarray]]]] = deque()
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._last_size, self._last_seconds, self._last_end = 0, 0.0, 0.0
        self._awaited = 0  # once so many requests wait, the batch leaves before its timer
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Requests that wait for their batch."""
        return len(self._queue)

    def put(self, arrays: Arrays) -> asyncio.Future[list[np.ndarray]]:
        """Return a future of the outputs for these rows; raise QueueFullError if too many requests wait."""
        if len(self._queue) >= self.max_queue:
            raise QueueFullError
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[np.ndarray]] = loop.create_future()
        self._queue.append((arrays, future))
        if not self._busy:
            if self._timer is None:
                patience = self._last_seconds * self.PATIENCE
                rest = self._last_end + patience - time.perf_counter()
                if rest > 0 and len(self._queue) < self._last_size:
                    self._wait(rest, self._last_size)
                else:
                    self._busy = True
                    loop.call_soon(self._start)
            elif len(self._queue) >= self._awaited:
                self._leave()
        return future

    def _wait(self, seconds: float, requests: int) -> None:
        self._awaited = requests
        self._timer = asyncio.get_running_loop().call_later(seconds, self._leave)

    def _leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._busy and self._queue:
            self._busy = True
            self._start()

    def _start(self) -> None:
        task = asyncio.get_running_loop().create_task(self._work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self) -> None:
        batch: list[tuple[Arrays, asyncio.Future[list[np.ndarray]]]] = []
        rows = 0
        while self._queue and (not batch or rows + len(self._queue[0][0][0]) <= self.max_rows):
            arrays, future = self._queue.popleft()
            if future.cancelled():  # its caller timed out
                continue
            batch.append((arrays, future))
            rows += len(arrays[0])
        began = time.perf_counter()
        try:
            if batch:
                self._observe(rows)
                await self._answer(batch)
        finally:
            self._last_end = time.perf_counter()
            self._last_size, self._last_seconds = len(batch), self._last_end - began
            self._busy = False
            if self._queue:
                self._next()

    def _next(self) -> None:
        """Start the next batch, after the callers of the last one had a moment to send again."""
        if sum(len(arrays[0]) for arrays, _ in self._queue) >= self.max_rows:
            self._busy = True
            self._start()
        else:
            self._wait(self._last_seconds * self.PATIENCE, len(self._queue) + self._last_size)

    async def _answer(self, batch: list[tuple[Arrays, asyncio.Future[list[np.ndarray]]]]) -> None:
        columns = range(len(batch[0][0]))
        joined = batch[0][0] if len(batch) == 1 else [np.concatenate([each[i] for each, _ in batch]) for i in columns]
        try:
            async with asyncio.timeout(self._timeout):
                outputs = await self._ask(joined)
        except Exception as error:
            if isinstance(error, ModelFailedError) and len(batch) > 1:  # find the request that is at fault
                middle = len(batch) // 2
                await self._answer(batch[:middle])
                await self._answer(batch[middle:])
                return
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        start = 0
        for arrays, future in batch:
            end = start + len(arrays[0])
            if not future.done():
                future.set_result([each[start:end] for each in outputs])
            start = end
