"""Flow runs in queues and during an outage, for a project in a subfolder with requirements.txt."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator

import pytest
from clients import ADDRESSES, as_person
from conftest import Reach
from flows import PATIENCE, done, end_of, history, record, remove_deployments, run_of, wait_for

from scripts.common import ROOT, environment
from scripts.lab import hosts as lab_hosts

pytestmark = pytest.mark.usefixtures("authority")

PROJECT = ROOT / "molecule/cluster/files/nightly"


@pytest.fixture(scope="module", autouse=True)
def nightly(reach: Reach, authority: None) -> Iterator[None]:
    """The project, deployed by ml1."""
    place = "/srv/git/toolbox.git"
    made = f"rm -rf {place} && sudo -u git git init --quiet --bare --initial-branch=main {place}"
    assert reach("git").run(f"sh -c '{made}'").rc == 0
    lines = ["rm -rf ~/toolbox", "git init --quiet --initial-branch=main ~/toolbox", "mkdir -p ~/toolbox/jobs/nightly"]
    lines.append("cd ~/toolbox/jobs/nightly")
    for path in PROJECT.iterdir():
        lines += [f"cat >{path.name} <<'END_OF_FILE'", path.read_text(), "END_OF_FILE"]
    lines += [
        "git config user.name ml1 && git config user.email ml1@example.com",
        "git remote add origin git@git:toolbox.git",
        "uv pip compile --quiet requirements.in --output-file requirements.txt",
        "git add --all && git commit --quiet --message='Hold' && git push --quiet --set-upstream origin main",
        "metalworks deploy",
    ]
    done("dev-1", "ml1", "\n".join(lines))
    yield
    remove_deployments("hold", "alone")


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


def answers() -> bool:
    """Tell whether Prefect responds."""
    try:
        return as_person("ml1", "prefect", "/api/health")[0] == 200
    except subprocess.CalledProcessError:  # the gateway is down
        return False


def test_a_project_in_a_folder_with_pinned_requirements_runs_on_a_worker() -> None:
    assert "unchanged" in done("dev-1", "ml1", "cd ~/toolbox/jobs/nightly && metalworks deploy")
    state = end_of(run_of("hold"))
    assert (state["type"], state["message"]) == ("COMPLETED", "tabulate 0.9.0 on cpu-1")


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


def test_runs_survive_the_death_of_the_services_host(reach: Reach) -> None:
    """They also keep their slots: with a limit of one, the second run starts when the first has ended."""
    holder = run_of("alone", seconds=60)
    wait_for(holder, "Running")  # before the second one exists: if both are due, either may take the slot
    waiting = run_of("alone")
    worker = reach("cpu-1").run("systemctl show --property MainPID prefect-worker-cpu.service").stdout
    names = reach("services-1").file("/etc/hosts").content_string
    subprocess.run(["docker", "kill", "services-1"], check=True, capture_output=True)
    time.sleep(10)
    subprocess.run(["docker", "start", "services-1"], check=True, capture_output=True)
    lab_hosts.forget_connections([ADDRESSES["services-1"]])
    # Docker writes this file at every start; on a machine it stays.
    restore = ["docker", "exec", "--interactive", "services-1", "tee", "/etc/hosts"]
    subprocess.run(restore, input=names, text=True, check=True, capture_output=True)
    deadline = time.monotonic() + PATIENCE
    while not answers():
        assert time.monotonic() < deadline
        time.sleep(2)
    assert [end_of(run)["type"] for run in (holder, waiting)] == ["COMPLETED", "COMPLETED"]
    assert history(holder).count("Running") == 1
    assert record(waiting)["start_time"] > record(holder)["end_time"]
    assert reach("cpu-1").run("systemctl show --property MainPID prefect-worker-cpu.service").stdout == worker
