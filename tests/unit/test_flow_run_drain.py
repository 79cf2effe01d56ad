"""A worker that is drained takes no new runs and lets its own continue, with a real Prefect server and worker."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from metalworks.flow_run.api import Api, ApiError

PATIENCE_SECONDS = 90
WORKER = """
import pathlib, sys
from metalworks.flow_run import drain
drain.DRAINING = pathlib.Path(sys.argv.pop(1))
drain.app()
"""
POOL = "cpu"


def wait_for(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not ready():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api",
        "PREFECT__SERVER_FINAL": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "DO_NOT_TRACK": "true",
    }


@pytest.fixture
def api(variables: dict[str, str], tmp_path: Path) -> Iterator[Api]:
    """Start a Prefect server with a pool, and return its API."""
    port = variables["PREFECT_API_URL"].rpartition(":")[2].removesuffix("/api")
    line = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app", "--port", port]
    found = Api({"PREFECT_API_URL": variables["PREFECT_API_URL"]})
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(line, env=variables, stdout=log, stderr=log)

        def answers() -> bool:
            assert server.poll() is None, (tmp_path / "log").read_text()
            try:
                return bool(found.ask("GET", "/health"))
            except ApiError:
                return False

        try:
            wait_for(answers, "Prefect's server does not start")
            template = {
                "job_configuration": {"command": "{{ command }}"},
                "variables": {"type": "object", "properties": {"command": {"type": "string"}}},
            }
            found.ask("POST", "/work_pools/", {"name": POOL, "type": "process", "base_job_template": template})
            yield found
        finally:
            server.terminate()
            server.wait()


@pytest.fixture
def drained(tmp_path: Path, variables: dict[str, str], api: Api) -> Iterator[Path]:
    """Start a worker, and return the file that drains it."""
    file = tmp_path / "draining"
    options = ["worker", "start", "--type", "process", "--pool", POOL, "--no-create-pool-if-not-found"]
    with (tmp_path / "worker.log").open("w") as log:
        worker = subprocess.Popen([sys.executable, "-c", WORKER, file, *options], env=variables, stdout=log, stderr=log)
        try:
            yield file
        finally:
            # Prefect's worker may ignore SIGTERM for good while it submits a run; systemd kills it in the end, too.
            worker.kill()
            worker.wait()


def start(api: Api, command: str) -> dict[str, Any]:
    """Create a run that runs this command, due now."""
    flow = api.ask("POST", "/flows/", {"name": "demo"})
    wanted = {"name": uuid.uuid4().hex, "flow_id": flow["id"], "work_pool_name": POOL}
    deployment = api.ask("POST", "/deployments/", wanted)
    run: dict[str, Any] = api.ask(
        "POST", f"/deployments/{deployment['id']}/create_flow_run", {"job_variables": {"command": command}}
    )
    return run


def test_a_drained_worker_finishes_its_run_and_takes_no_other(tmp_path: Path, api: Api, drained: Path) -> None:
    begun, go_on, ended, second = (tmp_path / name for name in ("begun", "go-on", "ended", "second"))
    start(api, f"sh -c 'touch {begun}; until test -e {go_on}; do sleep 0.1; done; touch {ended}'")
    wait_for(begun.exists, (tmp_path / "worker.log").read_text())
    drained.write_text(f"{time.time() + 600}")
    time.sleep(3)  # a question that was under way may still bring a run; only time shows that none follows
    run = start(api, f"touch {second}")
    time.sleep(5)  # the same
    go_on.touch()
    wait_for(ended.exists, "the run that was under way ended with the drain")
    assert api.ask("GET", f"/flow_runs/{run['id']}")["state_type"] == "SCHEDULED"
    assert not second.exists()
    drained.write_text(f"{time.time() - 1}")  # nobody stopped the worker in time: it works again
    wait_for(second.exists, (tmp_path / "worker.log").read_text())
