"""Decodes large requests in a separate process: `python -m metalworks.serving.predict.decoding`.

A decoder holds the interpreter lock until it is done, so a thread would block the event loop. The process starts when
it is first needed and ends when it is idle, which also frees the memory that a large request took.
"""

# Not a pool: loky takes 3 processes and 80 MB where this takes 42, ProcessPoolExecutor 130 MB; the loop waits longer.

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

from metalworks_model_runner import memory
from metalworks_model_runner.cost import scan_json
from metalworks_model_runner.limits import Limits, TooMuchError

from metalworks.contracts import Facts
from metalworks.serving.predict.client import ModelLostError
from metalworks.serving.predict.codecs import mlflow_request, open_inference
from metalworks.serving.predict.codecs.mlflow_request import RequestRefusedError

INVOCATIONS, TENSORS = "invocations", "tensors"
IDLE_SECONDS = 30
LIGHT_BYTES, LOOK_BYTES, LIGHT_MARKS = 2**17, 2**20, 2**16
"""Bodies up to the first size are decoded at once, and up to the second if they have few enough values."""


def light(body: bytes) -> bool:
    """Return whether decoding this body takes at most about 20 ms, whatever it contains."""
    if len(body) <= LIGHT_BYTES:
        return True
    return len(body) <= LOOK_BYTES and sum(map(body.count, (b",", b"[", b"{"))) <= LIGHT_MARKS


class DecodingProcess:
    """The process that decodes for one version, one request at a time."""

    def __init__(self, facts: Facts, limits: Limits) -> None:
        """Decode for the model that `facts` describes."""
        self._known = (facts, limits)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="elsewhere")
        self._process: subprocess.Popen[bytes] | None = None

    async def __call__(self, protocol: str, body: bytes) -> Any:
        """Return what `decode` returns; raises RequestRefusedError, and ModelLostError when the process ends twice."""
        result = await asyncio.get_running_loop().run_in_executor(self._pool, self._ask, protocol, body)
        if isinstance(result, RequestRefusedError):
            raise result
        return result

    def close(self) -> None:
        """End the process."""
        self._pool.submit(self._end)
        self._pool.shutdown(wait=False)

    def _ask(self, protocol: str, body: bytes) -> Any:
        for _ in range(2):  # an idle process may be about to end
            try:
                process = self._running()
                _put((protocol, body), process.stdin)
                return pickle.load(process.stdout)  # type: ignore[arg-type]  # noqa: S301 (from our own process)
            except (OSError, EOFError, pickle.UnpicklingError):
                self._end()
        raise ModelLostError("The process that decodes large requests ended twice")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            command = [sys.executable, "-m", "metalworks.serving.predict.decoding"]
            variables = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables)
            _put(self._known, self._process.stdin)
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]


def _put(value: Any, stream: IO[bytes] | None) -> None:
    pickle.dump(value, stream, protocol=5)  # type: ignore[arg-type]
    stream.flush()  # type: ignore[union-attr]


def decode(facts: Facts, limits: Limits, protocol: str, body: bytes) -> Any:
    """Return the inputs (None to leave the request to MLflow); for the Open Inference Protocol, id and inputs."""
    try:
        scan_json(body, limits)
    except TooMuchError as error:
        raise RequestRefusedError(413, str(error)) from error
    if protocol == INVOCATIONS:
        return mlflow_request.decoder(facts, limits)(body)
    return open_inference.decode(facts, mlflow_request.most_rows(facts, limits), body)


def main() -> None:
    """Decode requests from standard input until it ends."""
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # keeps what libraries print apart from results
    facts, limits = pickle.load(source)  # noqa: S301 (from our own process)
    while True:
        signal.alarm(IDLE_SECONDS)  # ends the process; a request that comes just then starts another
        try:
            protocol, body = pickle.load(source)  # noqa: S301 (as above)
        except EOFError:
            return
        signal.alarm(0)
        result: Any
        try:
            result = decode(facts, limits, protocol, body)
        except RequestRefusedError as refusal:
            result = refusal
        _put(result, sink)
        del result, body
        memory.release()


if __name__ == "__main__":
    main()
