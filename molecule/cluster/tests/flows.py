"""Deploy, start and watch flows on the cluster as a user does."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from clients import as_person
from conftest import Reach

from scripts.lab import hosts as lab_hosts
from scripts.tests.faults import project

SMOKE = "metalworks-smoke"
"""The smoke checks' deployment and the folder of their objects, which come and go with each site.yml."""
PATIENCE = 300
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def shell(host: str, person: str, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a user's login shell."""
    argv = ["ssh", "-F", str(lab_hosts.SSH_CONFIG), host, f"sudo su - {person} -c 'bash -euo pipefail'"]
    return subprocess.run(argv, input=script, capture_output=True, text=True, check=False, timeout=600)


def done(host: str, person: str, script: str) -> str:
    """Run a script that must succeed; return its output."""
    ended = shell(host, person, script)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def deployments() -> dict[str, dict[str, object]]:
    """Return the deployments on the server by name, without values that change by themselves and the smoke checks'."""
    status, found = as_person("ml1", "prefect", "/api/deployments/filter", body={})
    assert status == 200
    kept = ("id", "version", "job_variables", "schedules")
    return {one["name"]: {key: one[key] for key in kept} for one in found if one["name"] != SMOKE}


def remove_deployments(*names: str) -> None:
    """Delete deployments from the server, if they exist."""
    there = deployments()
    for name in names:
        if name in there:
            assert as_person("ml1", "prefect", f"/api/deployments/{there[name]['id']}", method="DELETE")[0] == 204


def run_of(name: str, queue: str | None = None, **parameters: Any) -> str:
    """Start a deployment's flow, in this queue or the deployment's own; return the id of its run."""
    deployment = deployments()[name]["id"]
    path = f"/api/deployments/{deployment}/create_flow_run"
    body = {"parameters": parameters, **({"work_queue_name": queue} if queue else {})}
    status, run = as_person("ml1", "prefect", path, body=body)
    assert status in (200, 201), run
    return str(run["id"])


def history(run: str) -> list[str]:
    """Return the names of a flow run's states, in order."""
    _, found = as_person("ml1", "prefect", f"/api/flow_run_states/?flow_run_id={run}")
    return [state["name"] for state in sorted(found, key=lambda state: state["timestamp"])]


def wait_for(run: str, state: str) -> None:
    """Wait until a flow run has been in a state."""
    deadline = time.monotonic() + PATIENCE
    while state not in (seen := history(run)):
        assert time.monotonic() < deadline, seen
        time.sleep(0.5)


def record(run: str) -> dict[str, Any]:
    """Return a flow run from Prefect's API."""
    _, found = as_person("ml1", "prefect", f"/api/flow_runs/{run}")
    return dict(found)


def end_of(run: str) -> dict[str, str]:
    """Wait for a flow run's final state and return it."""
    deadline = time.monotonic() + PATIENCE
    while (state := record(run)["state"])["type"] not in ENDED:
        assert time.monotonic() < deadline, state
        time.sleep(2)
    return dict(state)


@contextmanager
def toolbox(reach: Reach) -> Iterator[None]:
    """Deploy a project of ml1's, in a subfolder with requirements.txt; at the end, remove its deployments."""
    assert reach("git").run(f"sh -c '{project.EMPTY}'").rc == 0
    assert "parent waits for leave/leave in its own pool cpu" in done("dev-1", "ml1", project.deploy())
    try:
        yield
    finally:
        remove_deployments(*project.DEPLOYMENTS)
