"""A developer's work on two dev hosts: compare and reproduce runs, deploy and schedule projects."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from uuid import uuid4

import pytest
from clients import as_person, over_ssh, secrets
from conftest import Reach
from flows import PATIENCE, SMOKE, deployments, done, end_of, history, remove_deployments, run_of, shell, wait_for

from scripts.common import ROOT, lock

pytestmark = pytest.mark.usefixtures("authority")

PROJECT = ROOT / "molecule/cluster/files/project"


def uploaded() -> list[str]:
    """Return the objects in the bucket for flow code, without those of the smoke checks and of test_store_attacks."""
    script = """
    /opt/metalworks/workstation/current/bin/python - <<'END'
    import os, botocore.session
    store = botocore.session.get_session().create_client("s3")
    pages = store.get_paginator("list_objects_v2").paginate(Bucket=os.environ["METALWORKS_FLOW_CODE_BUCKET"])
    for page in pages:
        for item in page.get("Contents", []):
            print(item["Key"], item["ETag"])
    END
    """
    found = done("dev-1", "ml1", re.sub("^    ", "", script, flags=re.MULTILINE)).splitlines()
    return [line for line in found if not line.startswith((f"{SMOKE}/", "victim-"))]


def retrained() -> dict[str, str]:
    """Run the example's retraining and return its final state; retry while a scheduled run is in progress."""
    deadline = time.monotonic() + PATIENCE
    while (state := end_of(run_of("retrain")))["type"] == "CANCELLED":
        assert time.monotonic() < deadline, state
        time.sleep(2)
    return state


COLUMNS = ["year", "month", "day", "dep_time", "sched_dep_time", "dep_delay", "arr_time", "sched_arr_time", "carrier"]
COLUMNS += ["flight", "tailnum", "origin", "dest", "air_time", "distance", "hour", "minute", "time_hour"]
FLIGHTS = "SELECT * FROM records.flights WHERE month <= (SELECT revealed FROM records.control)"
BROKEN = {
    "half a month": (
        f"{FLIGHTS} OR month = 1 + (SELECT revealed FROM records.control) AND day <= 15",
        "days without (enough) flights",
    ),
    "no flights": (FLIGHTS, "no flights"),
    "wrong types": (
        FLIGHTS.replace("*", f"{', '.join(COLUMNS)}, arr_delay::text").replace("<=", "<= 1 +"),
        "arr_delay is not a number",
    ),
}
"""Broken variants of the customer's view of flights, with weather for one more month."""


def customer(flights: str, months: int) -> None:
    """Let the customer's database show these flights, and weather for more months than have arrived."""
    weather = "SELECT * FROM records.weather WHERE month <= (SELECT revealed FROM records.control)"
    statements = [
        "BEGIN; SET ROLE customer; DROP VIEW flights; DROP VIEW weather",
        f"CREATE VIEW flights AS {flights}",
        f"CREATE VIEW weather AS {weather.replace('<=', f'<= {months} +')}",
        "GRANT SELECT ON flights, weather TO flights_reader; COMMIT",
    ]
    command = "cd / && sudo -u postgres psql --quiet --set ON_ERROR_STOP=1 flights"
    over_ssh("customer-db", command, ";\n".join(statements) + ";\n")


def models() -> list[dict[str, object]]:
    """Return the registered versions and the champion."""
    command = "cd ~/flights && .venv/bin/python -m flights state --url https://inference.metalworks.internal/delay"
    found = json.loads(done("dev-1", "ml1", command))
    return [found["versions"], found["champion"]]


@pytest.fixture(scope="module")
def projects(reach: Reach) -> Iterator[dict[str, str]]:
    """Create two projects of ml1: one with a remote over SSH, one over HTTPS with a token."""
    remotes = {"older": "git@git:older.git", "newer": "https://git/newer.git"}
    versions = {"older": "1.6.1", "newer": "1.7.2"}
    files = {path.relative_to(PROJECT): path.read_text() for path in PROJECT.rglob("*") if path.is_file()}
    token = secrets()["vault_git_token"]
    for name, remote in remotes.items():
        place = f"/srv/git/{name}.git"
        made = f"rm -rf {place} && sudo -u git git init --quiet --bare --initial-branch=main {place}"
        assert reach("git").run(f"sh -c '{made}'").rc == 0
        lines = [f"rm -rf ~/{name}", f"git init --quiet --initial-branch=main ~/{name}", f"cd ~/{name}", "mkdir flows"]
        for path, text in files.items():
            text = text.replace("older", name).replace(versions["older"], versions[name])
            lines += [f"cat >{path} <<'END_OF_FILE'", text, "END_OF_FILE"]
        lines += [
            "git config user.name ml1 && git config user.email ml1@example.com",
            f"git remote add origin {remote}",
            "git config http.https://git/.extraHeader "
            f'"Authorization: Basic $(printf token:%s {token} | base64 --wrap=0)"',
            "uv lock --quiet",
            "git add --all && git commit --quiet --message='Meet another project'",
            "git push --quiet --set-upstream origin main",
        ]
        done("dev-1", "ml1", "\n".join(lines))
    yield remotes
    remove_deployments(*remotes)


@pytest.fixture
def registry() -> Iterator[None]:
    """Keep the tests that register models away."""
    with lock("models"):
        yield


def test_a_parent_and_its_children_run_on_their_pools() -> None:
    """Retraining: the parent on `cpu`, one child on `cpu`, one on `gpu`, linked in Prefect."""
    status, found = as_person("ml1", "prefect", "/api/flow_runs/filter", body={"sort": "START_TIME_DESC"})
    assert status == 200
    parts = [run for run in found if run["parent_task_run_id"] and run["state"]["type"] == "COMPLETED"]
    assert {run["work_pool_name"] for run in parts} == {"cpu", "gpu"}
    tasks = {run["parent_task_run_id"] for run in parts}
    status, linked = as_person(
        "ml1", "prefect", "/api/task_runs/filter", body={"task_runs": {"id": {"any_": [*tasks]}}}
    )
    assert status == 200
    parents = {task["flow_run_id"] for task in linked}
    assert {run["work_pool_name"] for run in found if run["id"] in parents} == {"cpu"}


@pytest.mark.usefixtures("registry")
def test_retraining_without_new_data_does_nothing() -> None:
    before = models()
    state = retrained()
    assert (state["type"], state["name"]) == ("COMPLETED", "Nothing new")
    assert models() == before


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_month_is_reported_and_changes_nothing(kind: str) -> None:
    flights, words = BROKEN[kind]
    before = models(), done("dev-1", "ml1", "git ls-remote git@git:flights.git")
    customer(flights, months=1)
    try:
        state = retrained()
    finally:
        customer(FLIGHTS, months=0)
    assert (state["type"], state["name"]) == ("FAILED", "Broken month"), state
    assert words in state["message"]
    assert (models(), done("dev-1", "ml1", "git ls-remote git@git:flights.git")) == before


def test_the_morning_page_is_there_in_a_terminal() -> None:
    """Exit status 1 says that something is ill, which another test may be causing."""
    shown = shell("dev-1", "ml1", "metalworks status")
    assert shown.returncode in (0, 1), shown.stderr
    assert re.search(r"^  retrain/retrain: .*\d+ completed", shown.stdout, re.MULTILINE), shown.stdout
    assert re.search(r"^  cpu: workers online: [1-9]", shown.stdout, re.MULTILINE), shown.stdout


def test_another_developer_can_fetch_the_data_of_a_run() -> None:
    commit = done("dev-1", "ml1", "git -C ~/flights rev-parse HEAD").strip()
    script = f"""
    rm -rf ~/flights && git clone --quiet git@git:flights.git ~/flights && cd ~/flights
    git checkout --quiet {commit} && dvc pull --quiet && cat data/features/* | sha256sum
    """
    mine = done("dev-1", "ml1", "cd ~/flights && cat data/features/* | sha256sum")
    assert done("dev-2", "ml2", script) == mine


@pytest.mark.parametrize("version", [1, 2], ids=["by hand", "by a worker"])
def test_another_developer_can_reproduce_a_run_exactly(version: int) -> None:
    """For a run that a user started, and for one that retraining created."""
    told = done("dev-2", "ml2", f"metalworks reproduce models:/flight-delay/{version}")
    assert "Equal to the last digit." in told


def test_compare_shows_the_differences_of_two_versions() -> None:
    told = done("dev-2", "ml2", "metalworks compare models:/flight-delay/1 models:/flight-delay/2 --json")
    found = json.loads(told)
    assert "data/features" in found["data"]
    assert "rmse" in found["scores"]
    assert found["code"]["commit"]


@pytest.mark.parametrize("lazy", [False, True], ids=["at the top", "inside a task"])
def test_a_missing_package_is_named_and_nothing_is_uploaded(projects: dict[str, str], lazy: bool) -> None:
    before = deployments(), uploaded()
    line = "    import tabulate" if lazy else "import tabulate"
    anchor = "^    store, bucket" if lazy else "^import sklearn"
    script = f"""
    cd ~/older && git checkout --quiet -B forgetful main
    sed -i '/{anchor}/i\\{line.replace(" ", chr(92) + " ")}' flows/meet.py && grep -n tabulate flows/meet.py
    git commit --quiet --all --message='Needs tabulate' && git push --quiet --force origin forgetful
    metalworks deploy 2>&1 || echo "ended with $?"
    """
    told = done("dev-1", "ml1", script)
    number = told.partition(":")[0]
    assert "ended with 1" in told
    assert f"flows/meet.py:{number}" in told
    assert "add the package that provides it (no name is suggested: a stranger may own it)" in told
    assert (deployments(), uploaded()) == before


def test_unpushed_code_is_refused(projects: dict[str, str]) -> None:
    before = deployments(), uploaded()
    dirty = shell(
        "dev-1",
        "ml1",
        "cd ~/older && git checkout --quiet main && echo >>README.md && git add README.md && metalworks deploy",
    )
    assert (dirty.returncode, "commit" in dirty.stderr) == (1, True), dirty.stderr
    unpushed = shell("dev-1", "ml1", "cd ~/older && git commit --quiet --message=more && metalworks deploy")
    done("dev-1", "ml1", "cd ~/older && git reset --quiet --hard origin/main")
    assert (unpushed.returncode, "push" in unpushed.stderr) == (1, True), unpushed.stderr
    assert (deployments(), uploaded()) == before


def test_two_projects_with_different_versions_run_on_one_worker_at_once(projects: dict[str, str]) -> None:
    for name in projects:
        would = done("dev-1", "ml1", f"cd ~/{name} && git checkout --quiet main && metalworks deploy --dry-run")
        assert name in would
        assert name not in deployments()
        done("dev-1", "ml1", f"cd ~/{name} && metalworks deploy")
    first = deployments(), uploaded()
    for name in projects:
        assert "unchanged" in done("dev-1", "ml1", f"cd ~/{name} && metalworks deploy")
    assert (deployments(), uploaded()) == first

    place = f"meeting-{uuid4()}"
    runs = {
        name: run_of(name, place=place, me=name, other=other)
        for name, other in (("older", "newer"), ("newer", "older"))
    }
    states = {name: end_of(run) for name, run in runs.items()}
    assert {name: state["message"] for name, state in states.items()} == {
        "older": "scikit-learn 1.6.1 on cpu-1",
        "newer": "scikit-learn 1.7.2 on cpu-1",
    }


def test_a_run_whose_worker_dies_is_retried(reach: Reach, projects: dict[str, str]) -> None:
    for name in projects.keys() - deployments().keys():  # none, after the test before this one
        done("dev-1", "ml1", f"cd ~/{name} && metalworks deploy")
    place = f"meeting-{uuid4()}"
    run = run_of("older", place=place, me="older", other="newer")
    wait_for(run, "Running")
    pid = "$(systemctl show --property MainPID --value prefect-worker-cpu.service)"
    assert reach("cpu-1").run(f"kill -KILL {pid}").rc == 0
    wait_for(run, "AwaitingRetry")
    end_of(run_of("newer", place=place, me="newer", other="older"))
    assert end_of(run)["type"] == "COMPLETED"
    assert [name for name in history(run) if name in ("Crashed", "AwaitingRetry")] == ["Crashed", "AwaitingRetry"]
