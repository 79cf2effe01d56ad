"""A model in service under constant load: new and bad versions, rollback, shadow, canary, a killed host."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from clients import DOMAIN, as_person, play
from conftest import Reach
from flows import done

from scripts.common import ROOT, lock
from scripts.lab import hosts as lab_hosts

FILES = ROOT / "molecule/cluster/files"
URL = f"https://inference.{DOMAIN}/delay"
SECOND = lab_hosts.Host("gpu-2", "198.51.100.22")
"""A second inference host, only during these tests."""
MODEL = "flight-delay"
KINDS = ("later", "again", "missing", "wrong", "late", "spy")
RATE, CONNECTIONS = 40, 8
FOLLOWED = 60.0
"""Maximum seconds until a moved alias takes effect: twice the time in docs/inference.md, because these hosts share two
processors with six others."""
STARTS = 8
"""Where that is more: so many times what a process with a model's packages takes to start, on a slow machine."""


def register(*kinds: str) -> dict[str, str]:
    """Register a version of each kind as a developer, in the example project; return their numbers."""
    script, spy = ((FILES / name).read_text() for name in ("versions.py", "spy.py"))
    folder = "~/.cache/spy"
    file = f"mkdir -p {folder}\ncat >{folder}/spy.py <<'END'\n{spy}\nEND\n"
    path = f"PYTHONPATH={folder}${{PYTHONPATH:+:$PYTHONPATH}}"
    run = f"cd ~/flights && {path} .venv/bin/python - {' '.join(kinds)} <<'END'\n{script}\nEND\n"
    numbers: dict[str, str] = json.loads(done("dev-1", "ml1", file + run).splitlines()[-1])
    return numbers


def registry(path: str, body: dict[str, str] | None = None, method: str = "") -> Any:
    """Return a response of MLflow's API to a developer. Its client takes seconds to start."""
    status, found = as_person("ml1", "mlflow", f"/api/2.0/mlflow/{path}", body, method=method)
    assert status == 200, found
    return found


def aliases() -> dict[str, str]:
    """Return the model's aliases and their versions."""
    found = registry(f"registered-models/get?name={MODEL}")["registered_model"]["aliases"]
    return {one["alias"]: one["version"] for one in found}


def move(alias: str, version: str) -> None:
    """Move an alias to a version."""
    registry("registered-models/alias", {"name": MODEL, "alias": alias, "version": version})


def remove(alias: str) -> None:
    """Remove an alias."""
    registry("registered-models/alias", {"name": MODEL, "alias": alias}, "DELETE")


def tags(version: str) -> dict[str, str]:
    """Return the tags of a version in MLflow."""
    found = registry(f"model-versions/get?name={MODEL}&version={version}")["model_version"]
    return {tag["key"]: tag["value"] for tag in found.get("tags", [])}


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Wait for a result and return it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.5)
    return found


@dataclass
class Answer:
    """A response to the load."""

    sent: float
    status: int
    seconds: float
    said: Any


class Load:
    """Constant requests through the gateway, from a dev host."""

    def __init__(self, body: str, seconds: int = 900) -> None:
        script = (FILES / "load.py").read_text()
        command = f"sudo -iu ml1 python3 /tmp/load.py {URL} {seconds} {RATE} {CONNECTIONS}"
        ssh = ["ssh", "-F", str(lab_hosts.SSH_CONFIG), "dev-1"]
        subprocess.run([*ssh, "cat >/tmp/load.py && chmod 644 /tmp/load.py"], input=script, text=True, check=True)
        self._process = subprocess.Popen([*ssh, command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin
        self._process.stdin.write(body)
        self._process.stdin.close()
        self.answers: list[Answer] = []
        self._lines = self._process.stdout
        assert self._lines
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._lines or ():
            self.answers.append(Answer(*json.loads(line)))

    def since(self, began: float) -> list[Answer]:
        """Return responses to requests sent since then."""
        return [answer for answer in [*self.answers] if answer.sent >= began]

    def failed(self) -> list[Answer]:
        """Return the requests without a prediction."""
        return [answer for answer in [*self.answers] if answer.status != 200]

    def end(self) -> None:
        """Stop the load."""
        self._process.terminate()
        self._process.wait()


def p99(answers: list[Answer]) -> float:
    """Return the 99th percentile of latency, in seconds."""
    return sorted(answer.seconds for answer in answers)[int(len(answers) * 0.99)]


@pytest.fixture(scope="module")
def two_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Add a second inference host by one line in the inventory, and remove it at the end."""
    lab_hosts.add(SECOND)
    line = tmp_path_factory.mktemp("inventory") / "one-more.yml"
    line.write_text(f"gpu: {{hosts: {{{SECOND.name}: {{ansible_host: {SECOND.address}}}}}}}\n")
    play("-i", str(line), "site.yml", "--limit", SECOND.name)
    yield
    lab_hosts.discard(SECOND)
    play("playbooks/services.yml", "--limit", "services-1")


@pytest.fixture(scope="module")
def body() -> str:
    """Return a request of the example: delayed flights of its newest month."""
    script = """
    cd ~/flights && .venv/bin/python - <<'END'
    import json
    from flights import prepare, service
    from flights.features import FEATURES
    months = prepare.load()
    print(json.dumps(service.payload(months[max(months)][FEATURES].head(2))))
    END
    """
    return done("dev-1", "ml1", re.sub("^    ", "", script, flags=re.MULTILINE)).strip()


@pytest.fixture(scope="module")
def made(authority: None) -> Iterator[dict[str, str]]:
    """Register versions to try; at the end, restore the former champion."""
    with lock("models"):
        before = aliases()["champion"]
        yield {**register(*KINDS), "first": before}
        move("champion", before)


@pytest.fixture(scope="module")
def load(two_hosts: None, made: dict[str, str], body: str) -> Iterator[Load]:
    """Run the load from before the first test until after the last."""
    running = Load(body)
    wait_until(lambda: len(running.answers) > 10 * RATE, 60, "answers")
    yield running
    running.end()


def is_of(kind: str) -> Callable[[Answer], bool]:
    """Tell whether a prediction is from the version with the large offset, or from the first one."""
    low = {"first": -500, "later": 500, "again": 1500}[kind]
    return lambda answer: answer.status == 200 and low <= answer.said < low + 1000


def moved(load: Load, name: str, version: str, kind: str, seconds: float) -> tuple[float, float]:
    """Move the alias; return the time, and how long it took until all responses were from the new version."""
    move(name, version)
    began = time.time()
    new = is_of(kind)

    def settled() -> float:
        latest = load.since(began)[-2 * RATE :]
        return len(latest) >= 2 * RATE and all(map(new, latest)) and latest[0].sent

    first = wait_until(settled, seconds, f"version {version} in service")
    old = [answer.sent for answer in load.since(began) if not new(answer)]
    return began, max(old, default=first) - began


def upstreams(reach: Reach) -> set[str]:
    """Return the hosts that the gateway sent the last requests to."""
    log = reach("services-1").check_output("tail -n 400 /var/log/nginx/access.log")
    lines = [json.loads(line) for line in log.splitlines()]
    asked = [line["upstream"] for line in lines if line["host"] == f"inference.{DOMAIN}"]
    return {upstream for each in asked for upstream in each.split(", ")}


def test_the_gateway_uses_a_host_added_by_one_limited_run(load: Load, reach: Reach) -> None:
    assert load.answers
    assert upstreams(reach) == {"198.51.100.21:8000", f"{SECOND.address}:8000"}


def longest_to_follow() -> float:
    """Return the maximum for this machine, as busy as it is now; the lab's hosts run on it."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import mlflow.pyfunc, sklearn.linear_model"], check=True)
    return max(FOLLOWED, STARTS * (time.monotonic() - began))


def test_a_new_champion_takes_over_within_seconds_without_errors(
    load: Load, made: dict[str, str], record_property: Callable[[str, object], None]
) -> None:
    calm = load.since(time.time() - 20)
    limit = longest_to_follow()
    began, took = moved(load, "champion", made["later"], "later", 2 * limit)
    during = load.since(began)
    record_property("seconds", took)
    print(f"followed after {took:.1f} s, of {limit:.0f} at most")
    print(f"p99 before {p99(calm) * 1000:.0f} ms, during {p99(during) * 1000:.0f} ms")
    assert not load.failed()
    assert took < limit
    said = {f"metalworks.inference.delay.{host}" for host in ("gpu-1", SECOND.name)}
    wait_until(lambda: said <= tags(made["later"]).keys(), 30, "a word of each host in MLflow")


def test_rollback_takes_effect_within_seconds(load: Load, made: dict[str, str]) -> None:
    _, took = moved(load, "champion", made["first"], "first", 60)
    print(f"back after {took:.1f} s")
    assert not load.failed()


@pytest.mark.parametrize(
    ("kind", "reason"), [("missing", "no-such-package-of-anybody"), ("wrong", "answers its example")]
)
def test_a_bad_version_is_refused_and_reported(load: Load, made: dict[str, str], kind: str, reason: str) -> None:
    began = time.time()
    move("champion", made[kind])

    def refused() -> list[str]:
        return [text for key, text in tags(made[kind]).items() if "inference" in key and "refused" in text]

    said = wait_until(refused, 120, "a refusal in MLflow")
    assert reason in said[0]
    assert all(map(is_of("first"), load.since(began)))
    move("champion", made["first"])
    assert not load.failed()


def asked(reach: Reach, url: str) -> str:
    """Return the response to a developer."""
    token = "$(cat ~ml1/.config/metalworks/inference_token)"
    command = "curl --silent --show-error --fail --cacert /etc/metalworks/tls/ca.crt"
    return str(reach("dev-1").check_output(f'{command} {url} -H "Authorization: Bearer {token}"'))


def metrics(reach: Reach) -> str:
    """Return the metrics of the first host."""
    return asked(reach, "https://gpu-1:8000/metrics")


def test_the_api_page_shows_the_models_columns_and_example(reach: Reach) -> None:
    operation = json.loads(asked(reach, f"{URL}/openapi.json"))["paths"]["/invocations"]["post"]
    payload = operation["requestBody"]["content"]["application/json"]
    columns = payload["schema"]["properties"]["dataframe_records"]["items"]["properties"]
    assert "carrier" in columns
    assert set(payload["example"]["dataframe_split"]["columns"]) == set(columns)


def test_a_shadow_answers_no_request_and_differences_are_counted(
    load: Load, made: dict[str, str], reach: Reach
) -> None:
    began = time.time()
    move("shadow", made["later"])
    differing = r'shadow_requests_total\{outcome="differing"\} [1-9]'
    wait_until(lambda: re.search(differing, metrics(reach)), 90, "differences")
    assert "shadow_difference_max 1000" in re.sub(r"(1000|999\.9)[0-9.]*", "1000", metrics(reach))
    remove("shadow")
    assert all(map(is_of("first"), load.since(began)))


def test_a_good_canary_becomes_the_champion(load: Load, made: dict[str, str]) -> None:
    began = time.time()
    move("canary", made["again"])
    new = is_of("again")
    wait_until(lambda: any(map(new, load.since(began))), 90, "answers of the canary")
    wait_until(lambda: all(map(new, load.since(time.time() - 2))), 120, "all answers of the canary")
    assert aliases()["champion"] == made["again"]
    assert not load.failed()


def test_a_slow_canary_is_withdrawn(load: Load, made: dict[str, str]) -> None:
    move("canary", made["late"])
    # It has another flavor, so its environment is built first.
    wait_until(lambda: any(a.said == 7.0 for a in load.since(time.time() - 2)), 300, "answers of the canary")

    def withdrawn() -> bool:
        now = aliases()
        return now["canary"] == now["champion"] == made["again"]

    wait_until(withdrawn, 120, "its withdrawal")
    wait_until(lambda: not any(a.said == 7.0 for a in load.since(time.time() - 4)), 30, "its end")
    assert any("withdr" in text for text in tags(made["late"]).values())
    assert not load.failed()


def test_a_model_cannot_reach_the_service_that_serves_it(load: Load, made: dict[str, str], reach: Reach) -> None:
    """The model's code runs in the equivalence check and when it is loaded; as a shadow it answers no requests."""
    host, report = reach("gpu-1"), "/var/lib/models-delay/report.json"
    host.check_output(f"rm -f {report}")
    move("shadow", made["spy"])
    wait_until(lambda: host.file(report).exists, 300, "what the model could")
    found = json.loads(host.check_output(f"cat {report}"))
    remove("shadow")
    assert found.pop("own file") == "done"  # it has tried
    assert int(found.pop("processes of others")) > 3
    assert [what for what, how in found.items() if how == "done"] == []
    looked = {what: how for what, how in found.items() if what.startswith(("read ", "list "))}
    assert {what: how for what, how in looked.items() if "Permission denied" not in how} == {}
    users = host.check_output(
        "ps -eo user:32=,args= | grep -E '[m]etalworks(.serving|_model_runner|-inference|-models)'"
    )
    names = {line.split()[0] for line in users.splitlines() if "runner" in line or "metalworks-models" in line}
    assert names == {"inference-model"}
    servers = ("metalworks.serving.http.worker", "metalworks-inference")
    names = {line.split()[0] for line in users.splitlines() if any(each in line for each in servers)}
    assert names == {"inference"}
    assert not load.failed()


def test_a_killed_host_costs_no_response(load: Load, made: dict[str, str]) -> None:
    moved(load, "champion", made["first"], "first", 60)
    began = time.time()
    subprocess.run(["docker", "kill", SECOND.name], check=True, capture_output=True)
    wait_until(lambda: len(load.since(began)) > 15 * RATE, 60, "answers without it")
    slowest = max(answer.seconds for answer in load.since(began))
    print(f"slowest answer {slowest:.2f} s")
    assert not load.failed()
