"""Serves one loaded model to the worker processes over a Unix socket: arrays in batches, raw requests in threads."""

from __future__ import annotations

import faulthandler
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from metalworks_model_runner import frames, packing
from metalworks_model_runner.model import Arrays, Model, Outputs, outputs_of
from metalworks_model_runner.threads import Threads

THREADS = 8
"""Raw requests that MLflow answers at the same time; its own server uses threads, too."""
CHUNK = 2**20


class _Peer:
    """The connection of a worker process."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.buffer = frames.Buffer()
        self._lock = threading.Lock()

    def send(self, frame: bytes) -> None:
        """Send a frame; drop it if the connection is closed."""
        with self._lock:
            try:
                self.connection.sendall(frame)
            except OSError:
                return


class ModelServer:
    """The event loop of a model's process."""

    def __init__(self, model: Model, executor: str, max_rows: int, rows: Arrays = ()) -> None:
        """Serve `model` with at most `max_rows` rows at a time.

        `executor`, for arrays, is pyfunc, mlflow or the name of a native function. `rows` are samples to measure how
        many threads are best.
        """
        self.model, self.max_rows = model, max_rows
        by_pyfunc: Callable[[Arrays], Any] = model.by_pyfunc
        # MLflow replaces a native function that is no longer there, for example because a GPU broke.
        self.ask = by_pyfunc if executor in ("pyfunc", "mlflow") else model.native().get(executor, by_pyfunc)
        self._pool = ThreadPoolExecutor(THREADS)
        self._selector = selectors.DefaultSelector()
        self._pending: list[tuple[_Peer, int, list[np.ndarray]]] = []
        self._rows, self._threads = rows, Threads()
        self._since: dict[int, float] = {}
        """When each thread began its current task, by the monotonic clock."""
        self._answered = False

    def listen(self, path: Path) -> None:
        """Serve forever on a socket at `path`, which appears once it accepts connections."""
        if self._rows:
            self._threads.measure(self.ask, self._rows)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        new = path.with_suffix(".new")
        new.unlink(missing_ok=True)
        listener.bind(str(new))
        listener.listen(64)
        new.chmod(0o660)  # the service runs as another user, in the folder's group
        new.rename(path)
        self._selector.register(listener, selectors.EVENT_READ, None)
        while True:
            # Read everything that waits first, so that rows of several worker processes share a batch.
            for key, _ in self._selector.select(0 if self._pending else None):
                if key.data is None:
                    connection, _address = listener.accept()
                    self._selector.register(connection, selectors.EVENT_READ, _Peer(connection))
                else:
                    self._read(key.data)
            if self._pending:
                self._answer_arrays()

    def end_when_stuck(self, seconds: float, first: float) -> None:
        """End this process, so that another replaces it, when the model works on one task for longer than `seconds`.

        `first` applies until the first response, since many models initialize during it. The process ends after about
        twice the time, with its stack traces on standard error. This also works if the model holds the interpreter's
        lock: faulthandler's timer runs outside the interpreter and ends the process unless it is reset in time.
        """

        def watch() -> None:
            while True:
                limit = seconds if self._answered else max(seconds, first)
                if time.monotonic() - min([*self._since.values()], default=float("inf")) < limit:
                    # By number, since a model may have replaced sys.stderr.
                    faulthandler.dump_traceback_later(limit * 1.25, exit=True, file=2)
                time.sleep(seconds / 8)

        threading.Thread(target=watch, daemon=True).start()

    def _read(self, peer: _Peer) -> None:
        try:
            data = peer.connection.recv(CHUNK)
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(peer.connection)
            peer.connection.close()
            return
        for number, kind, payload in peer.buffer.feed(data):
            header, body = frames.body_of(payload)
            if kind == frames.RAW:
                self._pool.submit(self._answer_raw, peer, number, header, bytes(body))
            else:
                self._pending.append((peer, number, packing.unpack(header, body)))

    def _answer_raw(self, peer: _Peer, number: int, about: Any, body: bytes) -> None:
        self._since[threading.get_ident()] = time.monotonic()
        try:
            status, media_type, answer = self.model.answer(body, about)
        except BaseException as error:  # the caller must get a response in any case
            peer.send(frames.frame(number, frames.FAILED, f"{type(error).__name__}: {error}"))
            raise
        finally:
            del self._since[threading.get_ident()]
            self._answered = True
        peer.send(frames.frame(number, frames.RAW, [status, media_type], [answer]))

    def _answer_arrays(self) -> None:
        batch: list[tuple[_Peer, int, list[np.ndarray]]] = []
        rows = 0
        while self._pending and (not batch or rows + len(self._pending[0][2][0]) <= self.max_rows):
            batch.append(self._pending.pop(0))
            rows += len(batch[-1][2][0])
        try:
            joined = (
                batch[0][2]
                if len(batch) == 1
                else [np.concatenate(each) for each in zip(*(arrays for _, _, arrays in batch), strict=True)]
            )
            self._threads.fit(rows)
            outputs = outputs_of(self._work(joined), rows)[1]
        except Exception as error:  # whatever a model raises
            if len(batch) > 1:  # only the request at fault should fail
                for each in batch:
                    self._alone(*each)
            else:
                self._failed(batch[0][0], batch[0][1], error)
            return
        start = 0
        for peer, number, arrays in batch:
            end = start + len(arrays[0])
            self._send(peer, number, [each[start:end] for each in outputs])
            start = end

    def _alone(self, peer: _Peer, number: int, arrays: list[np.ndarray]) -> None:
        try:
            self._send(peer, number, outputs_of(self._work(arrays), len(arrays[0]))[1])
        except Exception as error:  # whatever a model raises
            self._failed(peer, number, error)

    def _work(self, arrays: Arrays) -> Any:
        self._since[0] = time.monotonic()
        try:
            return self.ask(arrays)
        finally:
            del self._since[0]
            self._answered = True

    @staticmethod
    def _failed(peer: _Peer, number: int, error: Exception) -> None:
        peer.send(frames.frame(number, frames.FAILED, f"{type(error).__name__}: {error}"))

    @staticmethod
    def _send(peer: _Peer, number: int, outputs: Outputs) -> None:
        about, buffers = packing.pack(outputs)
        peer.send(frames.frame(number, frames.ARRAYS, about, buffers))


def end_with(parent: int) -> None:
    """End this process when the other end of the pipe `parent` is closed."""

    def watch() -> None:
        os.read(parent, 1)
        sys.stderr.flush()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
