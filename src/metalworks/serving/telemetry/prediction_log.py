"""The prediction log: a share of the requests with their responses, in files that `metalworks-model ship` collects.

One line of JSON per request, in a segment that grows as `.part` and is renamed when it is complete. Answering a request
only puts it into a queue; a thread writes the lines.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import random
import threading
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from metalworks.contracts import Facts, LogLine
from metalworks.serving.arrays import Arrays
from metalworks.serving.telemetry.metrics import Stats

SEGMENT_SECONDS, SEGMENT_BYTES = 30.0, 8 * 2**20
WAITING, WAITING_BYTES = 10_000, 64 * 2**20
"""Requests that may wait to be written, and roughly their bytes; further ones are dropped and counted."""
SPOOL_BYTES = 512 * 2**20
"""Size of the segments that may wait to be collected; further requests are dropped and counted."""
LONGEST_BODY = 64 * 2**10
_logger = logging.getLogger("uvicorn.error")


class PredictionSource(NamedTuple):
    """Which version predicted, and in which role."""

    role: str
    version: str
    facts: Facts


class LoggedRequest(msgspec.Struct):
    """A request with its response."""

    source: PredictionSource
    arrays: Arrays | None
    """The inputs, if the request was decoded."""
    body: bytes
    status: int
    response: bytes
    seconds: float
    difference: float | None = None
    """The largest difference between a shadow's prediction and the champion's."""
    time: float = msgspec.field(default_factory=time.time)


class Log:
    """Writes segments into a folder."""

    def __init__(self, folder: Path, share: float, stats: Stats) -> None:
        """Write `share` (0 to 1) of the requests."""
        self.folder, self.share, self._stats = folder, share, stats
        folder.mkdir(exist_ok=True)
        folder.chmod(0o770)  # the program that collects segments is in the group
        self._queue: queue.Queue[tuple[int, LoggedRequest | None]] = queue.Queue(WAITING)
        # Each is written by one thread only; their difference is what waits.
        self._bytes_taken = self._bytes_done = 0
        self._said: set[str] = set()
        self._thread = threading.Thread(target=self._work, daemon=True, name="prediction log")
        self._thread.start()

    def takes(self) -> bool:
        """Return whether this request is in the share."""
        return self.share >= 1 or random.random() < self.share  # noqa: S311 (no secret)

    def add(self, request: LoggedRequest) -> None:
        """Queue a request."""
        arrays, body = request.arrays, request.body
        # Arrays hold text by reference; it is about as long as the body.
        size = len(request.response) + max(len(body), sum(int(each.nbytes) for each in arrays or ()))
        request.body = body[:LONGEST_BODY] if arrays is None else b""  # no more than is written
        if self._bytes_taken - self._bytes_done > WAITING_BYTES:
            self._count("dropped", request)
            return
        try:
            self._queue.put_nowait((size, request))
        except queue.Full:
            self._count("dropped", request)
        else:
            self._bytes_taken += size

    def _count(self, outcome: str, request: LoggedRequest) -> None:
        rows = _rows(request)
        self._stats.log[outcome] = self._stats.log.get(outcome, 0) + rows

    def close(self) -> None:
        """Write what waits, and finish the segment."""
        self._queue.put((0, None))
        self._thread.join(timeout=10)

    def _work(self) -> None:
        segment: _Segment | None = None
        while True:
            wait = SEGMENT_SECONDS if segment is None else max(0.0, segment.ends - time.monotonic())
            try:
                size, request = self._queue.get(timeout=wait)
                closing = request is None
            except queue.Empty:
                size, request, closing = 0, None, False
            try:
                if segment is not None and (closing or segment.full):
                    segment.finish()
                    segment = None
                if request is not None:
                    segment = segment or self._begin()
                    if segment is not None:
                        segment.write(_line(request))
                    self._count("written" if segment is not None else "dropped", request)
            except OSError:  # a disk that is full now may have room later
                segment = None
                if request is not None:
                    self._count("dropped", request)
            except Exception as error:  # a request may contain anything, such as text that cannot be encoded
                self._say(error)
                if request is not None:
                    self._count("dropped", request)
            if closing:
                return
            self._bytes_done += size

    def _say(self, error: Exception) -> None:
        """Log an error once per kind, since callers can cause it with every request."""
        kind = type(error).__name__
        if kind not in self._said:
            self._said.add(kind)
            _logger.error("Cannot log this request, nor others like it: %s: %s", kind, error)

    def _begin(self) -> _Segment | None:
        """Return a new segment; None while too much waits to be collected."""
        waiting = 0
        for file in self.folder.glob("*.jsonl"):
            with contextlib.suppress(FileNotFoundError):  # it was just collected
                waiting += file.stat().st_size
        return _Segment(self.folder) if waiting <= SPOOL_BYTES else None


class _Segment:
    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{time.time_ns()}-{os.getpid()}.jsonl"
        self._part = self.path.with_suffix(".part")
        self._file = self._part.open("xb")
        self._part.chmod(0o660)
        self.ends = time.monotonic() + SEGMENT_SECONDS

    @property
    def full(self) -> bool:
        return time.monotonic() >= self.ends or self._file.tell() >= SEGMENT_BYTES

    def write(self, line: bytes) -> None:
        self._file.write(line)

    def finish(self) -> None:
        self._file.close()
        self._part.rename(self.path)


def _rows(request: LoggedRequest) -> int:
    return len(request.arrays[0]) if request.arrays is not None else 1


def _line(request: LoggedRequest) -> bytes:
    source, arrays = request.source, request.arrays
    inputs: dict[str, Any] | None = None
    if arrays is not None and source.facts["columns"]:
        columns = arrays[0].T if len(arrays) == 1 and arrays[0].ndim == 2 else arrays
        inputs = {each["name"]: column.tolist() for each, column in zip(source.facts["columns"], columns, strict=True)}
    elif arrays is not None:
        inputs = {"tensor": arrays[0].tolist()}
    try:
        predictions = msgspec.json.decode(request.response)
    except msgspec.DecodeError:
        predictions = request.response.decode(errors="replace")
    if isinstance(predictions, dict) and "predictions" in predictions:
        predictions = predictions["predictions"]
    line: LogLine = {
        "time": request.time,
        "request": uuid.uuid4().hex,
        "role": source.role,
        "version": source.version,
        "rows": _rows(request),
        "inputs": inputs,
        "raw": request.body.decode(errors="replace") if arrays is None else None,
        "predictions": predictions,
        "status": request.status,
        "seconds": round(request.seconds, 6),
        "difference": request.difference,
    }
    return msgspec.json.encode(line) + b"\n"
