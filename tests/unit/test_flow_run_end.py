"""Flow runs whose worker or host is gone, with a real Prefect server."""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from metalworks.flow_run import block, jam, lost, results
from metalworks.flow_run.api import Api, ApiError
from metalworks.flow_run.end import UNBEGUN_CRASHES, beat, end
from roles.platform_status.files.platform_status import checks as status
from roles.platform_status.files.platform_status import night

PATIENCE_SECONDS = 90
WORDS = "The worker is gone."


def wait_for(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not ready():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Start a Prefect server at a Unix socket, as on the services host, and return its API."""
    home = tmp_path_factory.mktemp("prefect")
    variables = {
        "PATH": os.environ["PATH"],
        "PREFECT_HOME": str(home),
        "PREFECT__SERVER_FINAL": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_ENABLED": "false",
        "DO_NOT_TRACK": "true",
    }
    line = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen([*line, "--uds", home / "api"], env=variables, stdout=log, stderr=log)
        found = Api({"PREFECT_API_URL": "http://localhost/api", "METALWORKS_PREFECT_SOCKET": str(home / "api")})

        def answers() -> bool:
            assert server.poll() is None, (home / "log").read_text()
            try:
                return bool(found.ask("GET", "/health"))
            except ApiError:
                return False

        try:
            wait_for(answers, "Prefect's server does not start")
            yield found
        finally:
            server.terminate()
            server.wait()


Make = Callable[..., str]


@pytest.fixture
def make(api: Api) -> Make:
    """Return a function that creates a flow run of a deployment with one slot."""

    def make(*states: str, retries: int | None = None, deployed: bool = True) -> str:
        flow = api.ask("POST", "/flows/", {"name": "demo"})
        if deployed:
            wanted = {"name": uuid.uuid4().hex, "flow_id": flow["id"], "concurrency_limit": 1}
            deployment = api.ask("POST", "/deployments/", wanted)
            run = api.ask("POST", f"/deployments/{deployment['id']}/create_flow_run", {})
        else:
            run = api.ask("POST", "/flow_runs/", {"flow_id": flow["id"]})
        if retries is not None:
            policy = {"retries": retries, "retry_delay": 60}
            api.ask("PATCH", f"/flow_runs/{run['id']}", {"empirical_policy": policy})
        go(api, run["id"], *states)
        return str(run["id"])

    return make


def go(api: Api, run: str, *states: str) -> None:
    for state in states:
        answer = api.ask("POST", f"/flow_runs/{run}/set_state", {"state": {"type": state}})
        assert answer["status"] == "ACCEPT", answer


def history(api: Api, run: str) -> list[str]:
    found = api.ask("GET", f"/flow_run_states/?flow_run_id={run}")
    return [state["name"] for state in sorted(found, key=lambda state: state["timestamp"])]


def free_slots(api: Api, run: str) -> bool:
    deployment = api.ask("GET", f"/deployments/{api.ask('GET', f'/flow_runs/{run}')['deployment_id']}")
    return bool(deployment["global_concurrency_limit"]["active_slots"] == 0)


def test_a_crashed_run_is_rescheduled_while_it_has_retries(api: Api, make: Make) -> None:
    run = make("PENDING", "RUNNING", retries=1)
    assert not free_slots(api, run)
    assert end(api, run, WORDS) == "AwaitingRetry"
    assert history(api, run)[-2:] == ["Crashed", "AwaitingRetry"]
    assert free_slots(api, run)
    state = api.ask("GET", f"/flow_runs/{run}")["state"]
    assert WORDS in state["message"]
    assert state["state_details"]["scheduled_time"] > state["timestamp"], "the flow's delay counts"

    # Another worker takes it; when it is due does not matter here.
    api.ask("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "SCHEDULED"}, "force": True})
    go(api, run, "PENDING", "RUNNING")
    assert end(api, run, WORDS) == "Crashed"
    assert free_slots(api, run)


def test_a_run_that_reported_its_crash_itself_is_rescheduled(api: Api, make: Make) -> None:
    run = make("PENDING", "RUNNING", "CRASHED", retries=1)
    assert end(api, run, WORDS) == "AwaitingRetry"


@pytest.mark.parametrize("retries", [None, 0])
def test_a_run_without_retries_stays_crashed(retries: int | None, api: Api, make: Make) -> None:
    run = make("PENDING", "RUNNING", retries=retries)
    assert end(api, run, WORDS) == "Crashed"
    assert api.ask("GET", f"/flow_runs/{run}")["state"]["message"] == WORDS


def test_a_run_that_cannot_start_is_not_retried(api: Api, make: Make) -> None:
    assert end(api, make("PENDING", retries=5), WORDS, again=False) == "Crashed"


def test_a_run_without_a_deployment_stays_crashed(api: Api, make: Make) -> None:
    assert end(api, make("RUNNING", retries=5, deployed=False), WORDS) == "Crashed"


def test_a_run_that_crashes_before_its_start_is_rescheduled_a_few_times(api: Api, make: Make) -> None:
    run = make()
    ends = []
    for _ in range(UNBEGUN_CRASHES + 1):
        go(api, run, "PENDING")
        ends.append(end(api, run, WORDS))
    assert ends == ["AwaitingRetry"] * UNBEGUN_CRASHES + ["Crashed"]


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED", "CANCELLED"])
def test_a_finished_run_keeps_its_state(state: str, api: Api, make: Make) -> None:
    run = make("PENDING", "RUNNING", state)
    before = history(api, run)
    end(api, run, WORDS)
    assert history(api, run) == before


def test_a_cancelling_run_becomes_cancelled(api: Api, make: Make) -> None:
    assert end(api, make("PENDING", "RUNNING", "CANCELLING", retries=5), WORDS) == "Cancelled"


def beats(api: Api, run: str) -> int:
    wanted = {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": {"id": [f"prefect.flow-run.{run}"]}}
    return int(api.ask("POST", "/events/filter", {"filter": wanted})["total"])


def state_of(api: Api, run: str) -> Any:
    return api.ask("GET", f"/flow_runs/{run}")["state"]["name"]


def test_only_a_run_without_heartbeats_is_lost(api: Api, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    heard, unheard, over = make("PENDING", "RUNNING", retries=1), make("PENDING", "RUNNING"), make("PENDING", "RUNNING")
    beat(api, heard)
    beat(api, over)
    go(api, over, "COMPLETED")
    wait_for(lambda: beats(api, heard) + beats(api, over) == 2, "the heartbeats do not arrive")
    assert lost.look(api) == []
    monkeypatch.setattr(lost, "SILENT_SECONDS", -1.0)
    (line,) = [line for line in lost.look(api) if heard in line]
    assert "now AwaitingRetry" in line
    assert [state_of(api, run) for run in (heard, unheard, over)] == ["AwaitingRetry", "Running", "Completed"]


@pytest.mark.parametrize(
    ("in_pool", "command", "expected"),
    [
        ("metalworks-flow-run", None, "AwaitingRetry"),
        ("metalworks-flow-run", "python -m prefect.flow_engine", "Pending"),
        ("python -m prefect.flow_engine", None, "Pending"),
        ("python -m prefect.flow_engine", "nice metalworks-flow-run", "AwaitingRetry"),
        (None, None, "Pending"),
    ],
)
def test_a_run_whose_worker_ended_before_the_first_heartbeat_is_lost(
    in_pool: str | None, command: str | None, expected: str, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = api.ask("POST", "/flows/", {"name": "demo"})
    wanted = {"name": uuid.uuid4().hex, "flow_id": flow["id"], "job_variables": {"command": command} if command else {}}
    if in_pool:
        properties = {"command": {"type": "string", "default": in_pool}}
        template = {"variables": {"properties": properties}, "job_configuration": {"command": "{{ command }}"}}
        pool = {"name": uuid.uuid4().hex, "type": "process", "base_job_template": template}
        wanted["work_pool_name"] = api.ask("POST", "/work_pools/", pool)["name"]
    deployment = api.ask("POST", "/deployments/", wanted)
    run = api.ask("POST", f"/deployments/{deployment['id']}/create_flow_run", {})["id"]
    go(api, run, "PENDING")
    assert [line for line in lost.look(api) if run in line] == [], "its worker may be about to start it"
    monkeypatch.setattr(lost, "SILENT_SECONDS", -1.0)
    lost.look(api)
    assert state_of(api, run) == expected


def test_a_retry_starts_with_a_new_heartbeat_deadline(api: Api, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make("PENDING")
    beat(api, run)
    wait_for(lambda: beats(api, run) == 1, "the heartbeat does not arrive")
    go(api, run, "RUNNING")
    (found,) = [each for each in lost.unfinished(api) if each["id"] == run]
    begun = lost.datetime.fromisoformat(found["state"]["timestamp"])
    assert lost.silence(api, found, begun) == 0.0


def test_prefect_understands_what_the_start_page_asks_of_a_pool(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "LATE_SECONDS", -1.0)
    monkeypatch.setattr(night, "LATE_SECONDS", -1.0)
    pool = f"pool-{uuid.uuid4().hex}"
    api.ask("POST", "/work_pools/", {"name": pool, "type": "process"})
    api.ask("POST", f"/work_pools/{pool}/workers/heartbeat", {"name": "worker"})
    flow = api.ask("POST", "/flows/", {"name": "demo"})
    deployment = api.ask("POST", "/deployments/", {"name": pool, "flow_id": flow["id"], "work_pool_name": pool})
    runs = [api.ask("POST", f"/deployments/{deployment['id']}/create_flow_run", {})["id"] for _ in range(2)]
    asked = functools.partial(status.work_pool, api.socket, pool)
    assert asyncio.run(asked()) == "1 worker is online"
    state = {"type": "SCHEDULED", "name": "Late"}
    api.ask("POST", f"/flow_runs/{runs[0]}/set_state", {"state": state, "force": True})
    with pytest.raises(status.Ill, match="1 run is due, and no worker starts it"):
        asyncio.run(asked())
    go(api, runs[1], "PENDING", "RUNNING")
    assert asyncio.run(asked()) == "1 worker is online"
    # What the page shows of the night is asked of the same server.
    assert asyncio.run(night.pool(api.socket, pool)) == {"name": pool, "workers": 1, "late": 1, "running": 1}

    def of_this() -> dict[str, Any]:
        found = asyncio.run(night.runs(api.socket, time.time()))
        (told,) = [each for each in found["deployments"] if each["name"] == f"demo/{pool}"]
        return dict(told)

    assert [each["id"] for each in of_this()["runs"]] == runs
    assert of_this()["counts"] == {"failed": 0, "late": 1, "running": 1, "completed": 0, "cancelled": 0}
    failed = {"state": {"type": "FAILED", "message": "No such file\nmore"}}
    api.ask("POST", f"/flow_runs/{runs[1]}/set_state", failed)
    told = of_this()
    assert (told["states"], told["counts"]["failed"]) == ({"FAILED": 1}, 1)
    (run,) = [each for each in told["runs"] if each["kind"] == "failed"]
    assert (run["id"], run["says"], run["pool"]) == (runs[1], "No such file", pool)
    assert abs(run["at"] - time.time()) < 60


def test_the_block_of_results_is_made_once_and_follows_its_address(api: Api) -> None:
    def there() -> Any:
        return api.ask("GET", "/block_types/slug/remote-file-system/block_documents/name/flow-results")["data"]

    assert block.make_block(api, "s3://flow-results/results")
    assert there() == {"basepath": "s3://flow-results/results", "settings": {}}
    assert not block.make_block(api, "s3://flow-results/results/")
    assert block.make_block(api, "s3://elsewhere/results")
    assert there()["basepath"] == "s3://elsewhere/results"


def test_the_block_waits_for_a_server_that_starts(api: Api, tmp_path, monkeypatch, capsys) -> None:
    """The server's socket appears after the first look."""
    socket = tmp_path / "api.sock"
    monkeypatch.setattr(block.time, "sleep", lambda _: socket.symlink_to(api.socket))
    block.wait_for_server(Api({"PREFECT_API_URL": "http://localhost/api", "METALWORKS_PREFECT_SOCKET": str(socket)}))
    said = capsys.readouterr().out.splitlines()
    assert [line.startswith("Prefect does not respond to GET /health") for line in said] == [True]


@pytest.mark.parametrize(
    ("variables", "packages", "expected"),
    [
        ({results.URL: "s3://flow-results/results"}, ["prefect", "s3fs"], results.BLOCK),
        ({results.URL: "s3://flow-results/results"}, ["prefect"], None),
        ({}, ["prefect", "s3fs"], None),
        ({results.URL: "s3://x/y", "PREFECT_DEFAULT_RESULT_STORAGE_BLOCK": "own/one"}, ["s3fs"], None),
    ],
)
def test_results_go_to_the_bucket_where_the_project_can_read_it(
    variables: dict[str, str], packages: list[str], expected: str | None
) -> None:
    assert results.storage(variables, packages).get("PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK") == expected


def a_run(run: str, pool: str) -> dict[str, Any]:
    return {"id": run, "name": run, "work_pool_name": pool}


@pytest.mark.parametrize(
    ("due", "active", "parent", "expected"),
    [
        pytest.param([("c1", "cpu")], [("p1", "cpu")], {"c1": "p1"}, ["cpu"], id="one parent"),
        pytest.param(
            [("c1", "cpu"), ("c2", "cpu")],
            [("p1", "cpu"), ("p2", "cpu")],
            {"c1": "p1", "c2": "p2"},
            ["cpu"],
            id="two parents",
        ),
        pytest.param([("c1", "cpu")], [("p1", "cpu"), ("other", "cpu")], {"c1": "p1"}, [], id="another will end"),
        pytest.param([("c1", "gpu")], [("p1", "cpu"), ("x", "gpu")], {"c1": "p1"}, [], id="another pool"),
        pytest.param([("late", "cpu")], [("p1", "cpu")], {}, [], id="a late run of nobody"),
        pytest.param(
            [("g", "cpu")], [("p", "cpu"), ("c", "gpu")], {"g": "c", "c": "p"}, ["cpu"], id="a ring over two pools"
        ),
        pytest.param(
            [("a", "gpu"), ("b", "cpu")],
            [("p", "cpu"), ("q", "gpu")],
            {"a": "p", "b": "q"},
            ["cpu", "gpu"],
            id="two pools that wait for each other",
        ),
        pytest.param(
            [("a", "gpu"), ("b", "cpu")],
            [("p", "cpu"), ("q", "gpu"), ("free", "gpu")],
            {"a": "p", "b": "q"},
            [],
            id="two pools, one of which goes on",
        ),
    ],
)
def test_a_pool_is_jammed_only_if_nothing_in_it_can_end(
    due: list[tuple[str, str]], active: list[tuple[str, str]], parent: dict[str, str], expected: list[str]
) -> None:
    found = jam.jammed([a_run(*one) for one in due], [a_run(*one) for one in active], parent)
    assert list(found) == expected


def test_a_parent_that_holds_its_childs_slot_is_told_so_once(
    api: Api, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jam, "LATE_SECONDS", -1.0)
    pool = f"pool-{uuid.uuid4().hex}"
    api.ask("POST", "/work_pools/", {"name": pool, "type": "process"})
    flow = api.ask("POST", "/flows/", {"name": "demo"})
    deployment = api.ask("POST", "/deployments/", {"name": pool, "flow_id": flow["id"], "work_pool_name": pool})
    create = f"/deployments/{deployment['id']}/create_flow_run"
    parent = api.ask("POST", create, {})["id"]
    go(api, parent, "PENDING", "RUNNING")
    task = api.ask("POST", "/task_runs/", {"flow_run_id": parent, "task_key": "child", "dynamic_key": "0"})
    child = api.ask("POST", create, {"parent_task_run_id": task["id"]})["id"]
    told = set[str]()
    (line,) = jam.look(api, lost.unfinished(api), told)
    assert pool in line
    assert jam.look(api, lost.unfinished(api), told) == []
    for run in (parent, child):
        wanted = {"logs": {"flow_run_id": {"any_": [run]}}}

        def said(wanted: dict[str, Any] = wanted) -> bool:
            return any("none of them can continue" in log["message"] for log in api.ask("POST", "/logs/filter", wanted))

        wait_for(said, "nothing is in the run's log")
    go(api, parent, "COMPLETED")
    assert jam.look(api, lost.unfinished(api), set()) == []


class Away(Exception):
    """Ends the endless loop in a test."""


@pytest.mark.parametrize(("looks", "closed"), [(20, False), (20, True)])
def test_no_run_is_lost_while_the_gateway_is_down(
    looks: int, closed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The gateway is down at the tenth of twenty looks; after that, all runs get the full time again."""
    clock = [0.0]
    judged: list[float] = []

    def ask(self: Api, method: str, path: str) -> None:
        assert not self.socket, "the way that the workers go"
        if closed and clock[0] == 10 * lost.LOOK_SECONDS:
            raise ApiError("closed")

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        if clock[0] == looks * seconds:
            raise Away

    monkeypatch.setenv("METALWORKS_PREFECT_SOCKET", "/nowhere")
    monkeypatch.setattr(Api, "ask", ask)
    monkeypatch.setattr(lost.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(lost.time, "sleep", sleep)
    monkeypatch.setattr(lost, "look", lambda api: judged.append(clock[0]) or [])
    monkeypatch.setattr(lost, "unfinished", lambda api: [])
    monkeypatch.setattr(lost.jam, "look", lambda api, active, told: [])
    with pytest.raises(Away):
        lost.main()
    first = [120.0, 135.0]
    assert judged == first + ([270.0, 285.0] if closed else [150.0 + 15 * step for step in range(10)])
    assert capsys.readouterr().out.count("closed") == closed


def test_an_unreachable_api_is_an_error(tmp_path: Path) -> None:
    nowhere = Api({"PREFECT_API_URL": "http://localhost/api", "METALWORKS_PREFECT_SOCKET": str(tmp_path / "none")})
    with pytest.raises(ApiError, match="does not respond to GET /health"):
        nowhere.ask("GET", "/health")
    with pytest.raises(ApiError, match="has no host"):
        Api({}).ask("GET", "/health")


@pytest.mark.parametrize(("busy", "said"), [(1, "asked"), (99, "503")])
def test_a_busy_database_is_retried(busy: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect responds with 503 while another process writes; retries are limited."""
    answers = iter([(503, b"{}")] * busy + [(200, b'"asked"')])
    monkeypatch.setattr(Api, "_answer", lambda *_: next(answers))
    monkeypatch.setattr("metalworks.flow_run.api.AGAIN_SECONDS", (0.0, 0.0))
    try:
        answer = Api({}).ask("GET", "/health")
    except ApiError as error:
        answer = str(error)
    assert said in answer
