"""Measure every system in turn, in several rounds."""

from __future__ import annotations

import json
import math
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts import processes
from scripts.benchmarks.serving import load
from scripts.benchmarks.serving.models import Model
from scripts.benchmarks.serving.systems import System
from scripts.common import BUILD, ProblemError
from scripts.inference.serve_model import START_SECONDS

CONNECTIONS = (1, 16, 64)
WARM_UP_SECONDS = 3.0


@dataclass(frozen=True)
class Cell:
    """One system with one model under one load, in one round."""

    model: str
    system: str
    connections: int
    problem: str = ""
    """Why there are no figures, or none that count."""
    per_second: float = 0
    p50_ms: float = 0
    p99_ms: float = 0
    not_2xx: int = 0
    cpu_ms: float = 0
    """The server's processor time per request."""
    memory_mib: float = 0
    cold_start_seconds: float = 0
    """From the start of the server to its first correct response."""


def right(system: System, model: Model, port: int, body: bytes) -> None:
    """Send one request; a response that differs from the model's prediction is a problem."""
    answer, expected = load.ask(port, system.path, body), system.expected(model)
    if not math.isclose(answer, expected, rel_tol=load.TOLERANCE, abs_tol=1e-6):
        raise ProblemError(f"responded with {answer}, but the model predicts {expected}")


def first_answer(server: subprocess.Popen[bytes], probe: Callable[[], None], log: Path) -> None:
    """Wait until the server responds correctly."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return probe()
        except (OSError, ProblemError) as error:
            last = str(error)
        if server.poll() is not None or time.monotonic() > deadline:
            output = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
            raise ProblemError(f"gave no correct response after its start: {last}\n{output}")
        time.sleep(0.02)


def cells(name: str, system: System, model: Model, seconds: float, connections: tuple[int, ...]) -> Iterator[Cell]:
    """Start a system, load it with each number of connections in turn, and stop it."""
    port, log = processes.free_port(), BUILD / f"bench-serving/{model.name}-{name}.log"
    body = json.dumps(system.body(model)).encode()
    left = list(connections)

    def probe() -> None:
        right(system, model, port, body)

    with TemporaryDirectory() as folder:
        file = Path(folder) / "body.json"
        file.write_bytes(body)
        url = f"http://127.0.0.1:{port}{system.path}"
        try:
            began = time.monotonic()
            with processes.running(
                system.argv(model, port), system.process_environment(model, port), system.folder(), log
            ) as server:
                first_answer(server, probe, log)
                cold_start = time.monotonic() - began
                load.wrk(url, file, CONNECTIONS[1], WARM_UP_SECONDS)
                time.sleep(1)
                idle = load.idle_seconds(probe)
                while left:
                    load.drain(probe, idle)
                    used = processes.cpu_seconds(server.pid)
                    seen = load.wrk(url, file, left[0], seconds)
                    used = processes.cpu_seconds(server.pid) - used
                    memory = processes.memory_mib(server.pid)
                    probe()
                    bad = f"{seen.not_2xx} responses were not 2xx, {seen.broken} are missing"
                    yield Cell(
                        model.name,
                        name,
                        left.pop(0),
                        bad if seen.not_2xx or seen.broken else "",
                        seen.per_second,
                        seen.p50_ms,
                        seen.p99_ms,
                        seen.not_2xx,
                        used * 1000 / max(seen.requests, 1),
                        memory,
                        cold_start,
                    )
        except (OSError, ProblemError) as error:
            for number in left:
                yield Cell(model.name, name, number, f"{system.title} {error}")
