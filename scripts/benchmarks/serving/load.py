"""Send requests to a server, load it with wrk, and wait until it has finished wrk's last requests."""

from __future__ import annotations

import http.client
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.common import ROOT, ProblemError, failure

POST = ROOT / "tests/benchmarks/post.lua"
ASK_SECONDS = 30
DRAIN_SECONDS = 60.0
TOLERANCE = 1e-4
"""Relative tolerance; single precision differs from the model's double precision by about 1e-6."""


@dataclass(frozen=True)
class Load:
    """The results of wrk."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    not_2xx: int
    broken: int
    """Requests without a response: connections refused or cut, and timeouts."""

    @property
    def per_second(self) -> float:
        """Return responses per second."""
        return self.requests / self.seconds


def parse(output: str) -> Load:
    """Parse the last line, which the script for wrk prints."""
    try:
        line = json.loads(output.strip().splitlines()[-1])
    except (IndexError, ValueError):
        raise ProblemError(f"wrk measured nothing: {output.strip()[-300:]}") from None
    broken = sum(line[kind] for kind in ("connect", "read", "write", "timeout"))
    return Load(line["requests"], line["seconds"], line["p50_ms"], line["p99_ms"], line["not_2xx"], broken)


def wrk(url: str, body: Path, connections: int, seconds: float) -> Load:
    """Load a server: each connection sends its next request when it has the response to the last one."""
    # One thread is enough to saturate any of the servers, and leaves them the other processor.
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds:.0f}s"]
    command += ["--timeout", f"{ASK_SECONDS}s", "--script", str(POST), url]
    variables = {**os.environ, "BENCH_BODY": str(body)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ProblemError(failure(command, done.returncode, done.stderr + done.stdout))
    return parse(done.stdout)


def ask(port: int, path: str, body: bytes) -> float:
    """Return the prediction for one row. Raises OSError or ProblemError if there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ASK_SECONDS)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        response = answer.read()
    except http.client.HTTPException as error:
        raise ProblemError(f"did not respond with HTTP: {error!r}") from None
    finally:
        connection.close()
    if not 200 <= answer.status < 300:
        raise ProblemError(f"answered {answer.status}: {response[:300].decode(errors='replace')}")
    return prediction(response)


def prediction(response: bytes) -> float:
    """Return the only number in a response, which is a list or an object with `predictions`."""
    try:
        found: Any = json.loads(response)
        (only,) = found["predictions"] if isinstance(found, dict) else found
        return float(only[0] if isinstance(only, list) else only)
    except (ValueError, TypeError, KeyError):
        raise ProblemError(f"answered {response[:300].decode(errors='replace')}") from None


def timed(probe: Callable[[], object]) -> float:
    """Return the seconds that one request takes."""
    began = time.monotonic()
    probe()
    return time.monotonic() - began


def idle_seconds(probe: Callable[[], object]) -> float:
    """Return the latency of an idle server."""
    return statistics.median(timed(probe) for _ in range(20))


def drain(probe: Callable[[], object], idle: float, limit: float = DRAIN_SECONDS) -> None:
    """Wait until the server responds as fast as when idle: wrk exits without waiting for its last requests."""
    deadline = time.monotonic() + limit
    quick = 0
    while quick < 5:
        quick = quick + 1 if timed(probe) <= 2 * idle + 0.005 else 0
        if time.monotonic() > deadline:
            raise ProblemError(f"is not idle {limit:.0f} s after the end of the load")
