"""Measure on a worker host how long a flow run takes from its due time to its flow's first line.

Runs as the worker's user, with the worker's environment and Python; prints JSON. Creates two work pools with a worker
each (one starts runs as this platform does, one as plain Prefect does), a project with a locked environment, and the
runs, and removes them all at the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

from metalworks.flow_run.api import Api, ApiError
from metalworks.flow_run.environment import identity, unprotect

PATIENCE_SECONDS = 300.0
# Longer than a worker looks ahead, so that it finds the run like any scheduled run.
LEAD_SECONDS = 13.0
PYPROJECT = """
[project]
name = "bench-flow"
version = "0"
requires-python = ">=3.11"
dependencies = ["prefect=={prefect}", "fastapi=={fastapi}"]
"""
# Python imports it before anything else: that is when the flow's own interpreter is there.
BEGINNING = """
import os, time
os.environ.setdefault("BENCH_FLOW_PYTHON", str(time.time()))
"""
FLOW = """
import json, os, time
from prefect import flow
from prefect.states import Completed

@flow(name="{name}")
def bench():
    first_line = time.time()
    ticks = int(open("/proc/self/stat").read().rpartition(")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    began = {{"process": first_line - age, "python": float(os.environ["BENCH_FLOW_PYTHON"]), "first_line": first_line}}
    return Completed(message=json.dumps(began))
"""


def wait_for(ready: Any, what: str) -> Any:
    """Wait until `ready` returns something, and return that."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := ready()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {PATIENCE_SECONDS:.0f} s")
        time.sleep(0.2)
    return found


def project(folder: Path, name: str) -> bytes:
    """Write the project, lock it, and return it as an archive."""
    versions = {package: metadata.version(package) for package in ("prefect", "fastapi")}
    (folder / "pyproject.toml").write_text(PYPROJECT.format(**versions))
    (folder / "sitecustomize.py").write_text(BEGINNING)
    (folder / "flow.py").write_text(FLOW.format(name=name))
    done = subprocess.run(["uv", "lock", "--quiet"], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"The project cannot be locked: {done.stderr.strip()}")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)
    return packed.getvalue()


def phases(api: Api, run: dict[str, Any]) -> dict[str, float]:
    """Return the seconds of each part of a finished run's start; parts before its due time are negative."""
    if run["state"]["type"] != "COMPLETED":
        raise RuntimeError(f"A run ended as {run['state']['name']}: {run['state']['message']}")
    at = json.loads(run["state"]["message"])
    at["due"] = datetime.fromisoformat(run["expected_start_time"]).timestamp()
    for state in api.ask("GET", f"/flow_run_states/?flow_run_id={run['id']}"):
        if state["name"] in ("Pending", "Running"):
            at[state["name"].lower()] = datetime.fromisoformat(state["timestamp"]).timestamp()
    steps = ["due", "pending", "process", "python", "running", "first_line"]
    parts = {f"{end}_after_{begin}": at[end] - at[begin] for begin, end in itertools.pairwise(steps)}
    return {**parts, "start": at["first_line"] - at["due"], "import": at["running"] - at["python"]}


@contextlib.contextmanager
def bench(api: Api, like: str, name: str) -> Iterator[dict[str, str]]:
    """Yield a deployment for each of the two ways, with workers waiting for runs; remove everything at the end."""
    cache = Path(os.environ["METALWORKS_FLOW_CACHE"])
    with tempfile.TemporaryDirectory(dir=cache) as home, contextlib.ExitStack() as stack:
        folder = Path(home)
        packed = project(folder, name)
        digest = hashlib.sha256(packed).hexdigest()
        code = cache / "code" / f"{digest}.tar.gz"
        code.parent.mkdir(parents=True, exist_ok=True)
        code.write_bytes(packed)
        stack.callback(code.unlink)
        environment = cache / "environments" / identity(folder)
        stack.callback(shutil.rmtree, environment, ignore_errors=True)
        stack.callback(unprotect, environment)
        stack.callback(environment.with_suffix(".lock").unlink, missing_ok=True)

        flow = api.ask("POST", "/flows/", {"name": name})["id"]
        stack.callback(api.ask, "DELETE", f"/flows/{flow}")
        template = api.ask("GET", f"/work_pools/{like}")["base_job_template"]
        bare = json.loads(json.dumps(template))
        bare["job_configuration"]["command"] = "{{ command }}"
        bare["variables"]["properties"]["command"] = {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}
        ours = {"METALWORKS_FLOW_CODE": "s3://bench/flow.tar.gz", "METALWORKS_FLOW_CODE_SHA256": digest}
        deployments = {}
        for way, job, variables, place in (
            ("ours", template, ours, "."),
            ("bare", bare, {"PYTHONPATH": str(folder)}, str(folder)),
        ):
            pool = f"{name}-{way}"
            api.ask("POST", "/work_pools/", {"name": pool, "type": "process", "base_job_template": job})
            stack.callback(api.ask, "DELETE", f"/work_pools/{pool}")
            wanted = {
                "name": way,
                "flow_id": flow,
                "entrypoint": "flow.py:bench",
                "work_pool_name": pool,
                "job_variables": {"env": variables},
                "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": place}}],
            }
            deployments[way] = str(api.ask("POST", "/deployments/", wanted)["id"])
            stack.callback(api.ask, "DELETE", f"/deployments/{deployments[way]}")
            line = [sys.executable, "-m", "prefect", "worker", "start", "--type", "process", "--pool", pool]
            worker = subprocess.Popen(
                [*line, "--name", pool, "--install-policy", "never"], stdout=subprocess.DEVNULL, stderr=sys.stderr
            )
            stack.callback(worker.wait)
            stack.callback(worker.terminate)
            workers = f"/work_pools/{pool}/workers/filter"
            wait_for(lambda path=workers: api.ask("POST", path, {}), f"worker of {pool}")
        yield deployments


def measure(api: Api, deployment: str, lead: float) -> dict[str, float]:
    """Run a deployment once, `lead` seconds from now, and return its phases."""
    state: dict[str, Any] = {"type": "SCHEDULED"}
    if lead:
        due = datetime.now(UTC) + timedelta(seconds=lead)
        state["state_details"] = {"scheduled_time": due.isoformat()}
    run = api.ask("POST", f"/deployments/{deployment}/create_flow_run", {"state": state})["id"]
    ends = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

    def ended() -> Any:
        found = api.ask("GET", f"/flow_runs/{run}")
        return found if found["state"]["type"] in ends else None

    try:
        return phases(api, wait_for(ended, "flow run"))
    finally:
        api.ask("DELETE", f"/flow_runs/{run}")


def main() -> None:
    """Measure the two ways alternately, and print all measurements."""
    like, times = sys.argv[1], int(sys.argv[2])
    api = Api(os.environ)
    seen: dict[str, list[dict[str, float]]] = {}
    try:
        with bench(api, like, f"metalworks-bench-{uuid.uuid4().hex[:8]}") as deployments:
            for deployment in deployments.values():
                measure(api, deployment, 0)  # builds the environment, fills caches
            for kind, lead in (("at_once", 0.0), ("scheduled", LEAD_SECONDS)):
                for _ in range(times):
                    for way, deployment in deployments.items():
                        seen.setdefault(f"{way}_{kind}", []).append(measure(api, deployment, lead))
    except (ApiError, RuntimeError, TimeoutError) as error:
        raise SystemExit(f"The bench came to nothing: {error}") from error
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
