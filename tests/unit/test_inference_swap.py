"""An inference service under constant load: versions change and fail, processes are killed, no request fails."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scripts.inference import constant_load
from tests.unit.inference_models import FRAME, save_constant, save_odd
from tests.unit.inference_service import JSON, RUNNER, WORKER, Service, service, wait_for

PER_SECOND = 200
BODY = json.dumps({"dataframe_split": FRAME[:1].to_dict("split")})
QUICK = constant_load.Request(JSON, BODY.encode())
CSV = constant_load.Request("text/csv", FRAME[:1].to_csv(index=False).encode())
ONE = {"predictions": [1.0]}
"""Prediction of version 1."""


class Load(constant_load.Load):
    """Sends requests continuously; one connection uses CSV, which MLflow's own functions parse."""

    def __init__(self, port: int) -> None:
        self.requests = [[CSV]] + [[QUICK]] * 7
        super().__init__(port, self.requests, PER_SECOND)

    def some(self, count: int = 80) -> None:
        """Wait for this many more responses, including a new request on every connection."""
        now, wanted = time.monotonic(), len(self.answers) + count

        def answered() -> bool:
            asked = {each.connection for each in [*self.answers] if each.at >= now}
            return len(self.answers) >= wanted and len(asked) == len(self.requests)

        wait_for(answered, "requests are answered")

    def predictions(self) -> set[tuple[float, ...]]:
        """Return the responses of each connection, without repetitions.

        Connections belong to worker processes, each of which changes the version at its own time.
        """
        orders: dict[int, list[float]] = {}
        for each in sorted(self.answers):
            order, said = orders.setdefault(each.connection, []), json.loads(each.body)["predictions"]
            if order[-1:] != said:
                order += said
        return {tuple(order) for order in orders.values()}


@contextmanager
def load(served: Service) -> Iterator[Load]:
    """Send requests continuously; at the end, no request may have failed."""
    asking = Load(served.port)
    try:
        asking.some()
        yield asking
        asking.some()
    finally:
        asking.end()
    assert not asking.wrong


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save models that predict their number; some have reasons to be refused, or to be slow."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_UV_AUTO_DETECT", "false")
        for number in (1, 2):
            save_constant(folder / f"{number}", float(number))
        for what in ("slow", "fails", "random", "drawn", "hangs", "dies"):
            save_odd(folder / what, what)
    broken = folder / "broken"
    broken.mkdir()
    (broken / "MLmodel").write_text((folder / "1" / "MLmodel").read_text())
    other = folder / "other"
    save_constant(other, 5.0, metadata={"metalworks.example_predictions": [7.0, 7.0]})
    return folder


@pytest.fixture(scope="module")
def served(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run one service for the module, with two worker processes and version 1 in service."""
    settings = {"workers": 2, "load_timeout": 200, "return_timeout": 200, "keep_previous": 3600, "log_share": 1}
    with service(tmp_path_factory.mktemp("service"), models / "1", **settings) as running:
        running.serves("1")
        yield running


@pytest.fixture
def one(served: Service, models: Path) -> Service:
    served.want(served.version("1", models / "1"))
    served.serves("1")
    return served


def test_new_version_takes_over_and_going_back_starts_nothing(one: Service, models: Path) -> None:
    with load(one) as asking:
        (first,) = one.processes(RUNNER)
        one.want(one.version("2", models / "2"))
        one.serves("2")
        asking.some()
        runners = one.processes(RUNNER)
        assert first in runners
        assert len(runners) == 2
        moved = time.monotonic()
        one.want(one.version("1", models / "1"))
        one.serves("1")
        asking.some()
        assert one.processes(RUNNER) == runners
    assert asking.predictions() == {(1.0, 2.0, 1.0)}
    back = next(each.at for each in sorted(asking.answers) if each.at > moved and json.loads(each.body) == ONE)
    print(f"back after {back - moved:.2f} s")
    said = one.get("/version").json
    assert (said["version"], said["executor"]) == ("1", "onnx")


def test_what_was_loaded_politely_answers_with_all_its_threads_at_once(one: Service) -> None:
    own = os.getpriority(os.PRIO_PROCESS, one.process.pid)
    for process in one.processes(RUNNER):
        threads = [int(each.name) for each in Path(f"/proc/{process}/task").iterdir()]
        assert {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads} == {own}


REASONS = {
    "broken": r"No such file|does not exist|Could not find",
    "fails": "it does not answer its own example: ",
    "other": r"it answers its example with .*5\.0.*, and answered .*7\.0.* when it was made",
    "dies": "its process was ended by SIGKILL|its process ended while it loaded",
}


@pytest.mark.parametrize(
    "bad", [["broken", "fails"], pytest.param(["other", "dies"], marks=pytest.mark.slow)], ids=",".join
)
def test_bad_versions_are_refused_and_the_old_one_serves_on(one: Service, models: Path, bad: list[str]) -> None:
    with load(one) as asking:
        one.want(*(one.version(what, models / what) for what in bad))
        reasons = {what: one.refuses(what) for what in bad}
    for what, reason in reasons.items():
        assert re.search(REASONS[what], reason), reason
        assert "\n" not in reason
    assert asking.predictions() == {(1.0,)}
    assert one.state["champion"]["version"] == "1"
    assert one.state["shadow"] is one.state["canary"] is None
    assert len(one.processes(RUNNER)) <= 2  # version 1, and version 2, which is kept
    one.want(one.version("1", models / "1"))
    wait_for(lambda: not one.state["refused"], "what nobody wants is not said to be refused")


@pytest.mark.parametrize("what", ["random", "drawn"])
def test_version_whose_answers_vary_is_served_by_mlflow_and_says_so(one: Service, models: Path, what: str) -> None:
    """Whether they vary from request to request, or from process to process."""
    one.want(one.version(what, models / what))
    state = one.serves(what)
    assert state["executor"] == "mlflow"
    assert state["warnings"] == ["its answers vary, so only their form was checked: number of rows, names and types"]
    assert "its answers to the same request vary" in state["reason"]
    assert f"Version {what}: its answers vary" in one.log
    answers = [one.post(JSON, BODY) for _ in range(3)]
    assert [each.status for each in answers] == [200] * 3
    assert (len({each.body for each in answers}) > 1) is (what == "random")
    said = one.get("/version").json
    assert (said["version"], said["warnings"]) == (what, state["warnings"])


@pytest.mark.slow
def test_version_that_worker_processes_cannot_load_is_refused(one: Service, models: Path) -> None:
    one.want(one.version("2", models / "2"))
    assert one.serves("2")["executor"] == "onnx"
    one.want(one.version("1", models / "1"))
    one.serves("1")
    (evidence,) = (one.folder / "state" / "evidence").glob("2-*")
    file = evidence / json.loads((evidence / "verdict.json").read_text())["file"]
    content = file.read_bytes()
    file.write_bytes(b"junk")  # the check is not repeated for a version that was served before
    try:
        with load(one) as asking:
            one.want(one.version("2", models / "2"))
            wait_for(lambda: "2" in one.state["preparing"] and "Cannot follow the new route yet" in one.log, "it tries")
            assert one.state["champion"]["version"] == "1"
            assert "a worker process cannot load it: " in one.refuses("2")
            wait_for(lambda: one.routes("1"), "version 1 is back")
        assert asking.predictions() == {(1.0,)}
        assert one.state["champion"]["version"] == one.get("/version").json["version"] == "1"
        assert json.loads((one.folder / "state" / "serving.json").read_text())["champion"]["version"] == "1"
        wait_for(lambda: len(one.processes(RUNNER)) == 1, "its process ends")
    finally:
        file.write_bytes(content)


def test_version_whose_interpreter_is_missing_is_refused(one: Service, models: Path) -> None:
    one.want(one.version("2b", models / "2", python="/nowhere/bin/python"))
    assert "/nowhere/bin/python" in one.refuses("2b")
    assert one.post(JSON, BODY).json == {"predictions": [1.0]}


def test_files_that_are_broken_or_gone_end_nothing(one: Service, models: Path) -> None:
    (one.folder / "desired.json").write_text("{")
    wait_for(lambda: "is malformed, so nothing changes" in one.log, "it is logged")
    entry = one.version("3", models / "2")
    (one.folder / "versions" / "3" / "model.json").write_text("{")
    one.want(entry)
    assert "its files cannot be read" in one.refuses("3")
    one.want(one.version("2", models / "2"))
    one.serves("2")
    kept = one.folder / "versions" / "1" / "model.json"
    card = kept.read_text()
    kept.unlink()  # of a replaced version
    one.want(one.version("2", models / "2"), canary=None)
    time.sleep(1)  # some iterations of the loop
    assert one.process.poll() is None
    kept.write_text(card)


def test_model_process_that_is_killed_costs_nobody_anything(one: Service, models: Path) -> None:
    with load(one) as asking:
        killed = one.processes(RUNNER)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: (now := one.processes(RUNNER)) and not set(now) & set(killed), "it is started again")
        asking.some(200)
    assert asking.predictions() == {(1.0,)}


def test_http_process_that_is_killed_comes_back_and_counts_on(one: Service) -> None:
    one.post(JSON, BODY)
    killed, other = sorted(one.processes(WORKER))
    spool = one.folder / "state" / "spool"
    before = sum(sum(each["statuses"].values()) for counts in one.counts() for each in counts["series"])
    parts = [*spool.glob(f"*-{killed}.part")]
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: len(one.processes(WORKER)) == 2 and killed not in one.processes(WORKER), "it is started again")
    assert other in one.processes(WORKER)
    wait_for(lambda: one.routes("1"), "the new one has the route")
    for _ in range(20):
        assert one.post(JSON, BODY).status == 200
    assert sum(sum(each["statuses"].values()) for counts in one.counts() for each in counts["series"]) >= before
    wait_for(lambda: not any(part.exists() for part in parts), "what it logged is finished by the other")


def test_files_that_cannot_be_written_end_nothing(one: Service, models: Path) -> None:
    """As if the disk were full."""
    with load(one) as asking:
        (one.folder / "state" / "serving.new").mkdir()
        one.want(one.version("2", models / "2"))
        one.serves("2")
        assert "after a restart the version before will serve first" in one.log
        (one.folder / "state" / "serving.new").rmdir()
        (one.folder / "run" / "state.new").mkdir()
        one.want(one.version("1", models / "1"))
        wait_for(lambda: one.routes("1"), "version 1 answers")
        wait_for(lambda: "Versions cannot change until this is fixed" in one.log, "it is said")
        (one.folder / "run" / "state.new").rmdir()
        one.serves("1")
    assert asking.predictions() == {(1.0, 2.0, 1.0)}


def test_counts_that_cannot_be_written_end_nothing(one: Service, models: Path) -> None:
    """Each worker process logs it once, and keeps following the route."""
    said = one.log.count("Cannot write the counts")
    blocks = [one.folder / "run" / f"stats-{slot}.new" for slot in range(2)]
    with load(one) as asking:
        for block in blocks:
            wait_for(lambda at=block: _made(at), "no process writes at this very moment")  # type: ignore[misc]
        wait_for(lambda: one.log.count("Cannot write the counts") == said + 2, "both say so")
        one.want(one.version("2", models / "2"))
        wait_for(lambda: {json.loads(each.body)["predictions"][0] for each in asking.answers[-20:]} == {2.0}, "of 2")
        assert one.get("/metrics").status == 200
        assert not one.routes("2")
        for block in blocks:
            block.rmdir()
        one.serves("2")
    assert one.log.count("Cannot write the counts") == said + 2
    assert asking.predictions() == {(1.0, 2.0)}


def _made(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def test_planned_end_loses_nothing_of_log_and_counts(models: Path, tmp_path: Path) -> None:
    with service(tmp_path / "service", models / "1", log_share=1) as running:
        running.serves("1")
        for _ in range(50):
            assert running.post(JSON, BODY).status == 200
        assert running.end() == 0
        spool = tmp_path / "service" / "state" / "spool"
        assert not [*spool.glob("*.part")]
        lines = [json.loads(line) for file in spool.glob("*.jsonl") for line in file.read_text().splitlines()]
        assert [line["predictions"] for line in lines] == [[1.0]] * 50
        (counts,) = running.counts()
        assert counts["log"] == {"written": 50}
        assert sum(sum(each["statuses"].values()) for each in counts["series"]) == 50


def test_version_that_does_not_stay_ready_answers_until_all_have_left_it(models: Path, tmp_path: Path) -> None:
    with service(tmp_path / "service", models / "1", workers=2, keep_previous=0) as running:
        running.serves("1")
        with load(running) as asking:
            running.want(running.version("2", models / "2"))
            running.serves("2")
            wait_for(lambda: len(running.processes(RUNNER)) == 1, "the old one ends")
    assert asking.predictions() == {(1.0, 2.0)}


def test_process_that_cannot_follow_the_route_tries_again(one: Service) -> None:
    (evidence,) = (one.folder / "state" / "evidence").glob("1-*")
    aside = one.folder / "aside"
    evidence.rename(aside)
    os.kill(one.processes(WORKER)[0], signal.SIGKILL)
    wait_for(lambda: "Cannot follow the new route yet" in one.log, "it is said")
    aside.rename(evidence)
    wait_for(lambda: one.routes("1") and len(one.processes(WORKER)) == 2, "it follows")
    assert one.post(JSON, BODY).json == ONE


def test_shadow_is_compared_and_nobody_waits_for_it(one: Service, models: Path) -> None:
    def outcomes() -> dict[str, float]:
        lines = one.get("/metrics").body.decode().splitlines()
        said = [line.rpartition(" ") for line in lines if "_shadow_" in line and line[0] != "#"]
        return {name.split('"')[1] if '"' in name else "largest": float(value) for name, _, value in said}

    one.want(one.version("1", models / "1"), shadow=one.version("2", models / "2"))
    one.serves("2", "shadow")
    before = outcomes()
    with load(one) as asking:
        pass
    assert asking.predictions() == {(1.0,)}
    wait_for(lambda: outcomes()["differing"] > before["differing"] + 50, "answers differ")
    assert outcomes()["largest"] == 1.0
    assert outcomes()["failed"] == before["failed"]
    one.want(one.version("1", models / "1"), shadow=one.version("slow", models / "slow"))
    one.serves("slow", "shadow")
    with load(one) as asking:
        asking.some(300)
    assert asking.predictions() == {(1.0,)}
    wait_for(lambda: outcomes()["dropped"] > before["dropped"], "a shadow that is too slow gets no more copies")
    assert one.get("/version").json["shadow"] == "slow"


def test_prediction_log_has_requests_with_answers(one: Service, models: Path) -> None:
    wait_for(lambda: [*(one.folder / "state" / "spool").glob("*.jsonl")], "a segment is finished")
    lines = [
        json.loads(line)
        for file in (one.folder / "state" / "spool").glob("*.jsonl")
        for line in file.read_text().splitlines()
    ]
    decoded = next(line for line in lines if line["inputs"] and line["role"] == "champion")
    assert decoded["inputs"] == FRAME[:1].to_dict("list")
    assert (decoded["rows"], decoded["status"], len(decoded["predictions"])) == (1, 200, 1)
    assert CSV.body.decode() in [line["raw"] for line in lines]  # beside what versions got that MLflow serves
    for line in lines:
        if line["status"] == 200 and line["role"] == "champion" and line["version"] in ("1", "2"):
            assert line["predictions"] == [float(line["version"])]


# -- Services with other settings


@pytest.mark.slow
def test_version_that_hangs_while_it_loads_is_refused(models: Path, tmp_path: Path) -> None:
    with service(tmp_path, models / "hangs", load_timeout=3) as hanging:
        reason = hanging.refuses("1")
        assert reason == "it was not ready within 3 s"
        assert hanging.get("/ping").status == 503
        assert hanging.get("/v2/health/live").status == 200
        wait_for(lambda: not hanging.processes(RUNNER), "its process is ended")


def canary_rules(**rules: float) -> str:
    return json.dumps({"percent": 30, "min_requests": 30, "min_seconds": 0, "max_latency_ratio": 1000, **rules})


@pytest.mark.slow
def test_canary_gets_its_share_and_a_verdict_and_a_restart_serves_what_served(models: Path, tmp_path: Path) -> None:
    with service(tmp_path, models / "1", canary=canary_rules()) as running:
        running.serves("1")
        running.want(running.version("1", models / "1"), canary=running.version("2", models / "2"))
        running.serves("2", "canary")
        connection = running.connect()
        answers = []
        for _ in range(400):
            connection.request("POST", "/invocations", BODY, {"content-type": JSON})
            answers.append(json.loads(connection.getresponse().read())["predictions"][0])
        connection.close()
        assert 70 < answers.count(2.0) < 170
        wait_for(lambda: running.state["canary_verdict"], "there is a verdict")
        assert running.state["canary_verdict"]["verdict"] == "promote"
        # A failing canary is withdrawn, although its share of clients got errors.
        for name, distance, status in (("fails", -2.0, 400), ("fails worse", -1.0, 500)):
            running.want(running.version("1", models / "1"), canary=running.version(name, models / "slow"))
            running.serves(name, "canary")
            assert running.state["canary_verdict"] is None
            failing = FRAME[:1].assign(distance=distance).to_csv(index=False)
            statuses = []

            def withdrawn(failing: str = failing, statuses: list[int] = statuses) -> Any:
                statuses.append(running.post("text/csv", failing).status)
                return running.state["canary_verdict"]

            assert wait_for(withdrawn, "it is withdrawn")["verdict"] == "withdraw"
            assert set(statuses) == {200, status}
            wait_for(lambda: running.routes(None, "canary"), "it gets no more requests")
            assert {running.post(JSON, BODY).json["predictions"][0] for _ in range(40)} == {1.0}
        # Two were withdrawn once each, and the promoted one was replaced later.
        assert (running.folder / "log").read_text().count("Canary: nobody") == 2
        # A version that is refused after a restart must not replace one that served.
        running.want(running.version("broken", models / "broken"))
        running.refuses("broken")
        assert running.end() == 0
        running.start()
        running.serves("1")
        running.refuses("broken")
        assert running.post(JSON, BODY).json == {"predictions": [1.0]}


SLOWLY = json.dumps({"dataframe_split": {"columns": list(FRAME.columns), "data": [[1.0, 0.0, 0.0]]}})


@pytest.mark.slow
def test_full_queues_and_long_answers_are_refused_and_an_end_answers_what_is_under_way(
    models: Path, tmp_path: Path
) -> None:
    """The model sleeps for the seconds in a request."""
    with service(tmp_path, models / "slow", max_queue=3, request_timeout=10) as running:
        running.serves("1")
        lasting = SLOWLY.replace("1.0, 0.0", "1.0, 2.0")

        def ask(body: str, into: list[Any]) -> threading.Thread:
            thread = threading.Thread(target=lambda: into.append(running.post(JSON, body)), daemon=True)
            thread.start()
            return thread

        answers: list[Any] = []
        threads = [ask(lasting, answers) for _ in range(12)]
        for thread in threads:
            thread.join(60)
        full = [each for each in answers if each.status == 503]
        assert {each.status for each in answers} == {200, 503}
        assert full
        assert full[0].headers["retry-after"] == "1"
        assert full[0].json["error_code"] == "RESOURCE_EXHAUSTED"
        late = running.post(JSON, SLOWLY.replace("1.0, 0.0", "1.0, 600.0"))
        assert (late.status, late.json["message"]) == (504, "Request processing time exceeded limit")
        # A hanging process is replaced; requests that nobody waits for are not repeated.
        (pid,) = running.processes(RUNNER)
        wait_for(lambda: running.processes(RUNNER) not in ([pid], []), "another process", 90)
        wait_for(lambda: running.post(JSON, SLOWLY).status == 200, "it answers again")
        assert "most recent call first" in (running.folder / "log").read_text()
        answers = []
        threads = [ask(lasting, answers) for _ in range(3)]
        wait_for(lambda: sum(sum(each["in_flight"].values()) for each in running.counts()) >= 3, "they are under way")
        assert running.end() == 0
        for thread in threads:
            thread.join(60)
        assert [each.status for each in answers] == [200] * 3
        assert not running.processes("")


@pytest.mark.slow
def test_an_end_waits_for_a_request_as_long_as_the_request_may_take(models: Path, tmp_path: Path) -> None:
    with service(tmp_path, models / "slow", request_timeout=60) as running:
        running.serves("1")
        answers: list[Any] = []
        lasting = SLOWLY.replace("1.0, 0.0", "1.0, 35.0")
        asking = threading.Thread(target=lambda: answers.append(running.post(JSON, lasting)), daemon=True)
        asking.start()
        wait_for(lambda: sum(sum(each["in_flight"].values()) for each in running.counts()), "it is under way")
        assert running.end() == 0
        asking.join(60)
        assert [each.status for each in answers] == [200]


@pytest.mark.slow
def test_processes_end_with_their_service(models: Path, tmp_path: Path) -> None:
    with service(tmp_path, models / "1") as running:
        running.serves("1")
        children = running.processes("")
        assert len(children) == 3
        running.process.kill()
        running.process.wait()
        wait_for(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in children), "they end")


@pytest.mark.slow
def test_evidence_of_an_earlier_release_is_made_anew(models: Path, tmp_path: Path) -> None:
    """Its fields have other names, and 0.1.0 kept it in another folder."""
    with service(tmp_path, models / "1") as running:
        running.serves("1")
        assert running.end() == 0
        state = running.folder / "state"
        (evidence,) = (state / "evidence").iterdir()
        verdict = json.loads((evidence / "verdict.json").read_text())
        old = {"function": "way", "reason": "why"}
        earlier = {old.get(name, name): value for name, value in verdict.items()}
        (evidence / "verdict.json").write_text(json.dumps(earlier))
        evidence.rename(evidence.with_name(f"{evidence.name.rpartition('-')[0]}-00000000"))
        (state / "models" / "evidence").rename(state / "models" / "proofs")
        (state / "proofs" / "1-x").mkdir(parents=True)
        running.start()
        running.serves("1")
        assert running.post(JSON, BODY).json == {"predictions": [1.0]}
        anew = json.loads((evidence / "verdict.json").read_text())
        assert anew.keys() == verdict.keys()
        assert not [*state.rglob("proofs")]
        assert "Traceback" not in running.log


SLOWLY = json.dumps({"dataframe_split": {"columns": list(FRAME.columns), "data": [[1.0, 0.0, 0.0]]}})
