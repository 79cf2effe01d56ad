"""The inference server for tests: as processes, as on a host; and in the test's own process."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from fastapi.testclient import TestClient
from metalworks_model_runner.model import Model
from metalworks_model_runner.server import ModelServer

from metalworks.serving.http.app import create_app
from metalworks.serving.predict.data_plane import DataPlane
from metalworks.serving.predict.variants import Route
from metalworks.serving.rollout.equivalence import check_equivalence
from metalworks.serving.settings import Settings
from metalworks.serving.telemetry.metrics import Stats
from scripts.inference import serve_model
from scripts.processes import free_port

JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"
TOKEN = "s3cret"
DIGEST = hashlib.sha256(TOKEN.encode()).hexdigest()
PATIENCE = 300.0
"""Timeout for anything on a busy machine; waiting ends as soon as the result is there."""


def wait_for(there: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Wait until `there` returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := there():
            return result
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:g} s: {what}")


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0]


class Service:
    """`metalworks-inference` for one service, on a free port of the loopback interface."""

    def __init__(self, folder: Path, model: Path, python: Path | str = sys.executable, **settings: Any) -> None:
        """Start it for `model` as version 1, run by `python`; `settings` are the server's, in lower case."""
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.port = free_port()
        self.variables = serve_model.settings_for(folder, self.port, **settings)
        self.want(self.version("1", model, str(python)))
        self.start()

    def start(self) -> None:
        for each in (self.folder / "run").iterdir():  # as systemd does
            shutil.rmtree(each) if each.is_dir() else each.unlink()
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [Path(sys.executable).with_name("metalworks-inference")],
                env={**os.environ, **self.variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def end(self) -> int:
        """Stop it; return its exit code."""
        self.process.terminate()
        return self.process.wait(PATIENCE)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def state(self) -> dict[str, Any]:
        """Return its state, empty before it has written one."""
        return serve_model.state(self.folder)

    def version(self, number: str, model: Path, python: str = sys.executable) -> dict[str, str]:
        """Return the entry of a version, as model sync writes it."""
        return serve_model.version(self.folder, number, model, python)

    def want(self, champion: Any, shadow: Any = None, canary: Any = None) -> None:
        serve_model.want(self.folder, champion, shadow, canary)

    def serves(self, number: str, role: str = "champion") -> dict[str, Any]:
        """Wait until a version is in service in every worker process."""

        def there() -> Any:
            assert self.process.poll() is None, self.log
            assert number not in self.state["refused"], f"{self.state}\n{self.log[-3000:]}"
            said = self.state[role]
            return said and said["version"] == number and self.routes(number, role)

        try:
            wait_for(there, f"version {number} is {role}")
        except AssertionError as late:
            raise AssertionError(f"{late}\n{self.state}\n{self.log[-3000:]}") from late
        state: dict[str, Any] = self.state[role]
        return state

    def routes(self, number: str | None, role: str = "champion") -> bool:
        """Tell whether every worker process uses a route with this version in this role, or with none."""
        try:
            route = json.loads((self.folder / "run" / "route.json").read_text())
        except FileNotFoundError:
            return False
        said, counts = route[role] and route[role]["card"]["version"], self.counts()
        return said == number and bool(counts) and all(each["routed"] >= route["revision"] for each in counts)

    def counts(self) -> list[dict[str, Any]]:
        return [json.loads(file.read_text()) for file in (self.folder / "run").glob("stats-*.json")]

    def refuses(self, number: str) -> str:
        """Wait until a version is refused; return the reason."""
        wait_for(lambda: number in self.state["refused"], f"version {number} is refused\n{self.log[-2000:]}")
        reason: str = self.state["refused"][number]["reason"]
        return reason

    def connect(self, timeout: float = PATIENCE) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(self, method: str, path: str, body: bytes | str = b"", content_type: str = "", **headers: str) -> Answer:
        connection = self.connect()
        if content_type:
            headers["content-type"] = content_type
        try:
            connection.request(method, path, body.encode() if isinstance(body, str) else body, headers)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def post(self, content_type: str, body: bytes | str) -> Answer:
        return self.ask("POST", "/invocations", body, content_type)

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def processes(self, of: str) -> list[int]:
        """Return the PIDs of the service's and its launcher's processes whose command contains `of`."""
        commands, parents = {}, {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    stat = entry.joinpath("stat").read_text()
                    command = entry.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                except (FileNotFoundError, ProcessLookupError):
                    continue
                parents[int(entry.name)], commands[int(entry.name)] = int(stat.rpartition(")")[2].split()[1]), command
        own = {pid for pid, parent in parents.items() if parent == self.process.pid}
        own |= {pid for pid, parent in parents.items() if parent in own and LAUNCHER in commands[parent]}
        return [pid for pid in own if of in commands[pid]]


LAUNCHER, WORKER = "metalworks.serving.rollout.launcher", "metalworks.serving.http.worker"
RUNNER = "metalworks_model_runner serve"


@contextmanager
def service(folder: Path, model: Path, **settings: Any) -> Iterator[Service]:
    """Run a service, and make sure that none of its processes remains."""
    folder.mkdir(exist_ok=True)
    with serve_model.runtime(folder):
        running = Service(folder, model, **settings)
        try:
            yield running
        finally:
            running.process.terminate()
            try:
                running.process.wait(60)
            except subprocess.TimeoutExpired:
                for pid in [*running.processes(""), running.process.pid]:
                    os.kill(pid, signal.SIGKILL)
                running.process.wait()


def invocations(client: TestClient, requests: Iterable[tuple[str | None, bytes]]) -> list[Answer]:
    """Send requests, each a content type and a body, one after another; return the responses.

    All of them in the application's own loop: the client would change threads eight times for each.
    """

    async def ask() -> list[Answer]:
        transport = httpx.ASGITransport(client.app, raise_app_exceptions=False)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url=client.base_url) as inside:
            answers = []
            for content_type, body in requests:
                headers = {} if content_type is None else {"content-type": content_type}
                answer = await inside.post("/invocations", content=body, headers=headers)
                answers.append(Answer(answer.status_code, dict(answer.headers), answer.content))
            return answers

    assert client.portal is not None
    return client.portal.call(ask)


class Assembled(NamedTuple):
    """A service in this process."""

    client: TestClient
    verdict: dict[str, Any]
    stats: Stats
    route: Route


@contextmanager
def assembled(
    evidence: Path, model: Model, executor: str, base_url: str = "http://testserver", **settings: Any
) -> Iterator[Assembled]:
    """Serve a checked model with one executor: the application, and the model's server in a thread."""
    verdict = check_equivalence(evidence, (executor,))
    with tempfile.TemporaryDirectory(prefix="metalworks-", dir="/tmp") as run:  # short enough for a socket's path
        path = Path(run) / f"{executor}.sock"
        server = ModelServer(model, verdict["function"], settings.get("max_batch_rows", 1024))
        threading.Thread(target=server.listen, args=(path,), daemon=True).start()
        wait_for(path.exists, "the model's server listens")
        given = Settings(service="model", desired=evidence, runtime=Path(run), state=evidence, **settings)
        stats, route = Stats(), Route()
        card = {"name": "model", "version": "1", "alias": "champion"}
        entry = {"id": "1", "card": card, "environment": "", "evidence": str(evidence), "socket": str(path)}
        application = create_app(DataPlane(given, route, stats), lambda: None)
        with TestClient(application, base_url=base_url, raise_server_exceptions=False) as client:
            # The connection to the model belongs to the client's loop.
            assert client.portal is not None
            client.portal.call(route.follow, {"champion": entry, "revision": 1}, given, stats)
            yield Assembled(client, verdict, stats, route)
