"""Flow runs in queues and what they leave behind, for a project in a subfolder with requirements.txt."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator

import pytest
from clients import as_person
from conftest import Reach
from flows import PATIENCE, done, end_of, record, run_of, toolbox, wait_for

from scripts.common import ROOT, environment, lock
from scripts.lab import hosts as lab_hosts

pytestmark = pytest.mark.usefixtures("authority")


@pytest.fixture(scope="module", autouse=True)
def nightly(reach: Reach, authority: None) -> Iterator[None]:
    """The project, deployed by ml1."""
    with toolbox(reach):
        yield


def queues(**priorities: int) -> str:
    """Run the role's tasks for the pools' queues, as site.yml does; return the output."""
    role = "name=prefect_server tasks_from=work_pools"
    command = ["ansible", "-i", str(lab_hosts.INVENTORY), "prefect_server", "--become", "--module-name"]
    command += ["ansible.builtin.include_role", "--args", role, "--extra-vars", json.dumps({"work_queues": priorities})]
    ended = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def order(pool: str) -> list[str]:
    """Return the queues of a pool by priority."""
    _, found = as_person("ml1", "prefect", "/api/work_queues/filter", body={"limit": 200})
    return [
        queue["name"] for queue in sorted(found, key=lambda one: one["priority"]) if queue["work_pool_name"] == pool
    ]


def test_a_project_in_a_folder_with_pinned_requirements_runs_on_a_worker() -> None:
    assert "unchanged" in done("dev-1", "ml1", "cd ~/toolbox/jobs/nightly && metalworks deploy")
    state = end_of(run_of("hold"))
    assert (state["type"], state["message"]) == ("COMPLETED", "tabulate 0.9.0 on cpu-1")


@pytest.fixture
def no_play() -> Iterator[None]:
    """Keep plays, which restore the site's order, away."""
    with lock("site"):
        yield


@pytest.mark.usefixtures("no_play")
def test_queues_are_served_in_the_sites_order() -> None:
    """Also after the site's order changes."""
    before = order("cpu")
    try:
        queues(default=1, urgent=2)
        assert (order("cpu")[:2], order("gpu")[:2]) == (["default", "urgent"], ["default", "urgent"])
        assert "CHANGED" not in queues(default=1, urgent=2)
        for run in [run_of("hold", seconds=10) for _ in range(2)]:  # as many as the worker runs at once
            wait_for(run, "Running")
        runs = {run_of("hold", queue): queue for queue in ("urgent", "default", "default")}
        for run in runs:
            assert end_of(run)["type"] == "COMPLETED"
        assert [runs[run] for run in sorted(runs, key=lambda run: record(run)["start_time"])][-1] == "urgent"
    finally:
        queues(urgent=1, default=2)
    assert order("cpu") == before


def left_behind(reach: Reach) -> str:
    """The processes on cpu-1 that the flow `leave` started."""
    return str(reach("cpu-1").run("sh -c 'grep -ls 8612[3] /proc/[0-9]*/cmdline'").stdout)


def logged(run: str) -> str:
    """What a flow run has in its log."""
    _, found = as_person("ml1", "prefect", "/api/logs/filter", body={"logs": {"flow_run_id": {"any_": [run]}}})
    return "\n".join(line["message"] for line in found)


def cancel(run: str) -> None:
    """Cancel a flow run as its page does."""
    body = {"state": {"type": "CANCELLING"}}
    assert as_person("ml1", "prefect", f"/api/flow_runs/{run}/set_state", body=body)[0] in (200, 201)


def test_a_run_ends_with_everything_that_it_started(reach: Reach) -> None:
    run = run_of("leave")
    assert end_of(run)["type"] == "COMPLETED"
    assert end_of(run_of("hold"))["type"] == "COMPLETED"  # nobody holds the slot
    assert "that the flow left behind" in logged(run)
    assert left_behind(reach) == ""


def test_a_cancelled_run_runs_its_hooks_and_leaves_nothing(reach: Reach) -> None:
    run = run_of("leave", seconds=600)
    wait_for(run, "Running")
    deadline = time.monotonic() + PATIENCE
    while not left_behind(reach):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    cancel(run)
    assert end_of(run)["type"] == "CANCELLED"
    assert left_behind(reach) == ""
    assert "Hook 'note' finished running successfully" in logged(run)


def test_parents_that_hold_their_childrens_slots_are_told_so() -> None:
    parents = [run_of("parent") for _ in range(2)]  # as many as the worker takes at once
    deadline = time.monotonic() + PATIENCE
    try:
        while not all("none of them can continue" in logged(run) for run in parents):
            assert time.monotonic() < deadline, [logged(run) for run in parents]
            time.sleep(2)
        cancel(parents[0])
        assert end_of(parents[1])["type"] == "COMPLETED"
    finally:
        for run in parents:
            cancel(run)
