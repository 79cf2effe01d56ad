"""The prediction log: a share of the requests, with their answers, in files that somebody else takes away.

One line of JSON per request, in a segment that grows as `.part` and is renamed when it is whole. The hot route only
puts a tuple into a list; a thread makes lines of them.
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
"""Requests that may wait to be written, and what they may roughly hold; more are dropped, and counted."""
SPOOL_BYTES = 512 * 2**20
"""What may lie there before somebody takes it away; more is dropped, and counted."""
LONGEST_BODY = 64 * 2**10
_logger = logging.getLogger("uvicorn.error")


class PredictionSource(NamedTuple):
    """What predicted."""

    role: str
    version: str
    facts: Facts


class Log:
    """Writes segments into a folder."""

    def __init__(self, folder: Path, share: float, stats: Stats) -> None:
        """Write `share` (0 to 1) of the requests."""
        self.folder, self.share, self._stats = folder, share, stats
        folder.mkdir(exist_ok=True)
        folder.chmod(0o770)  # whoever takes the segments away is of the group
        self._queue: queue.Queue[tuple[int, tuple[Any, ...] | None]] = queue.Queue(WAITING)
        # Each is written by one thread alone; their difference is what waits.
        self._bytes_taken = self._bytes_done = 0
        self._said: set[str] = set()
        self._thread = threading.Thread(target=self._work, daemon=True, name="prediction log")
        self._thread.start()

    def takes(self) -> bool:
        """Tell whether the request at hand is in the share."""
        return self.share >= 1 or random.random() < self.share  # noqa: S311 (no secret)

    def add(
        self,
        source: PredictionSource,
        arrays: Arrays | None,
        body: bytes,
        status: int,
        answer: bytes,
        seconds: float,
        difference: float | None = None,
    ) -> None:
        """Take a request and its answer; `arrays` where it was decoded."""
        # Text is in the arrays by its address, and about as long as the body.
        size = len(answer) + max(len(body), sum(int(each.nbytes) for each in arrays or ()))
        body = body[:LONGEST_BODY] if arrays is None else b""  # no more than is written
        line = (time.time(), source, arrays, body, status, answer, seconds, difference)
        if self._bytes_taken - self._bytes_done > WAITING_BYTES:
            self._count("dropped", arrays)
            return
        try:
            self._queue.put_nowait((size, line))
        except queue.Full:
            self._count("dropped", arrays)
        else:
            self._bytes_taken += size

    def _count(self, outcome: str, arrays: Arrays | None) -> None:
        rows = len(arrays[0]) if arrays is not None else 1
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
                size, line = self._queue.get(timeout=wait)
            except queue.Empty:
                size, line = 0, ()
            try:
                if segment is not None and (line is None or segment.full):
                    segment.finish()
                    segment = None
                if line:
                    segment = segment or self._begin()
                    if segment is not None:
                        segment.write(_line(*line))
                    self._count("written" if segment is not None else "dropped", line[2])
            except OSError:  # a disk that is full now may have room later
                segment = None
                if line:
                    self._count("dropped", line[2])
            except Exception as error:  # of a request there may be anything, as text that is none
                self._say(error)
                if line:
                    self._count("dropped", line[2])
            if line is None:
                return
            self._bytes_done += size

    def _say(self, error: Exception) -> None:
        """Say once of each kind of mistake that requests are not logged for it: callers make them."""
        kind = type(error).__name__
        if kind not in self._said:
            self._said.add(kind)
            _logger.error("Cannot log this request, nor others like it: %s: %s", kind, error)

    def _begin(self) -> _Segment | None:
        """Return a new segment; None while as much lies there as may."""
        waiting = 0
        for file in self.folder.glob("*.jsonl"):
            with contextlib.suppress(FileNotFoundError):  # it was just taken away
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


def _line(
    when: float,
    source: PredictionSource,
    arrays: Arrays | None,
    body: bytes,
    status: int,
    answer: bytes,
    seconds: float,
    difference: float | None,
) -> bytes:
    inputs: dict[str, Any] | None = None
    if arrays is not None and source.facts["columns"]:
        columns = arrays[0].T if len(arrays) == 1 and arrays[0].ndim == 2 else arrays
        inputs = {each["name"]: column.tolist() for each, column in zip(source.facts["columns"], columns, strict=True)}
    elif arrays is not None:
        inputs = {"tensor": arrays[0].tolist()}
    try:
        predictions = msgspec.json.decode(answer)
    except msgspec.DecodeError:
        predictions = answer.decode(errors="replace")
    if isinstance(predictions, dict) and "predictions" in predictions:
        predictions = predictions["predictions"]
    line: LogLine = {
        "time": when,
        "request": uuid.uuid4().hex,
        "role": source.role,
        "version": source.version,
        "rows": len(arrays[0]) if arrays is not None else 1,
        "inputs": inputs,
        "raw": body.decode(errors="replace") if arrays is None else None,
        "predictions": predictions,
        "status": status,
        "seconds": round(seconds, 6),
        "difference": difference,
    }
    return msgspec.json.encode(line) + b"\n"
