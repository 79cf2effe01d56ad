"""A shadow: a version that gets a copy of the requests. Nobody waits for it or sees its responses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import numpy as np

from metalworks.serving.arrays import Arrays
from metalworks.serving.predict.variants import LoadedVersion, Variant
from metalworks.serving.telemetry.metrics import Stats
from metalworks.serving.telemetry.prediction_log import Log, LoggedRequest

Decode = Callable[[LoadedVersion], Awaitable[Arrays | None]]


class Shadow:
    """Asks the shadow version, and compares its predictions with the champion's."""

    MOST = 64
    MOST_BYTES = 64 * 2**20
    """Copies that may wait, and their bytes together; further ones are dropped and counted."""

    def __init__(self, stats: Stats, log: Log | None, timeout: float) -> None:
        """Count in `stats`, write a share to `log`, and give up a copy after `timeout` seconds."""
        self._stats, self._log, self._timeout = stats, log, timeout
        self._tasks: set[asyncio.Task[None]] = set()
        self._bytes = 0

    def _count(self, outcome: str) -> None:
        self._stats.shadow[outcome] = self._stats.shadow.get(outcome, 0) + 1

    def copy(
        self, variant: Variant, outputs: Arrays | None, request: tuple[bytes, bytes], decode: Decode | None = None
    ) -> None:
        """Take a copy of a request (body and content type), and the champion's outputs if the request was decoded.

        `decode` turns a request of another protocol than MLflow's into a version's inputs.
        """
        # A version that MLflow's own functions answer can take no other protocol.
        size = len(request[0])
        if (
            len(self._tasks) >= self.MOST
            or self._bytes + size > self.MOST_BYTES
            or (decode is not None and variant.version.decode is None)
        ):
            self._count("dropped")
            return
        task = asyncio.get_running_loop().create_task(self._ask(variant, outputs, request, decode))
        self._tasks.add(task)
        self._bytes += size
        task.add_done_callback(self._done(size))

    def _done(self, size: int) -> Callable[[asyncio.Task[None]], None]:
        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._bytes -= size

        return done

    async def _ask(
        self, variant: Variant, outputs: Arrays | None, request: tuple[bytes, bytes], decode: Decode | None
    ) -> None:
        version = variant.version
        body, content_type = request
        began = time.perf_counter()
        variant.working += 1
        try:
            async with asyncio.timeout(self._timeout):
                mine: Arrays | None = None
                if version.decode is not None and outputs is not None:
                    mine = await (decode(version) if decode is not None else version.arrays_of(body))
                if mine is not None and outputs is not None:
                    theirs = await version.outputs(mine)
                    difference = _difference(outputs, theirs)
                    self._log_it(variant, mine, body, theirs, time.perf_counter() - began, difference)
                else:
                    status, _, answer = await version.raw(body, content_type.decode("latin-1"))
                    difference = None
                    if status != 200:
                        raise ValueError(answer[:200])
                    if self._log is not None and self._log.takes():
                        seconds = time.perf_counter() - began
                        self._log.add(LoggedRequest(variant.source, None, body, status, answer, seconds))
        except Exception:  # a shadow may fail in any way: showing that is its purpose
            self._count("failed")
            variant.series.observe(time.perf_counter() - began, 500)
            return
        finally:
            variant.working -= 1
        self._count("answered" if difference is None else "compared")
        variant.series.observe(time.perf_counter() - began, 200)
        if difference:
            self._count("differing")
            self._stats.shadow["largest"] = max(self._stats.shadow.get("largest", 0.0), difference)

    def _log_it(
        self, variant: Variant, arrays: Arrays, body: bytes, outputs: Arrays, seconds: float, difference: float
    ) -> None:
        if self._log is not None and self._log.takes():
            answer = variant.version.write(outputs) if variant.version.write else b"null"
            self._log.add(LoggedRequest(variant.source, arrays, body, 200, answer, seconds, difference))


def _difference(ours: Arrays, theirs: Arrays) -> float:
    """Return the largest difference between two predictions; values other than numbers differ by 1."""
    largest = 0.0
    if len(ours) != len(theirs):
        return 1.0
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            return 1.0
        if a.dtype.kind in "fiu" and b.dtype.kind in "fiu":
            a, b = a.astype(np.float64), b.astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):
                gap = np.nan_to_num(np.abs(a - b), nan=_MOST_DIFFERENT, posinf=_MOST_DIFFERENT)
            alike = (a == b) | (np.isnan(a) & np.isnan(b))  # infinities, too
            largest = max(largest, float(np.where(alike, 0.0, gap).max(initial=0.0)))
        elif not np.array_equal(a, b):
            largest = max(largest, 1.0)
    return largest


_MOST_DIFFERENT = float(np.finfo(np.float64).max)
