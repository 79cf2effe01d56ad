"""scripts/tests/scenarios.py: scheduling and display of scenarios, and protection of a lab in use."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scripts.common import ProblemError
from scripts.lab import docker_engine
from scripts.lab import hosts as lab_hosts
from scripts.progress import Expectation
from scripts.tests import scenarios
from tests.unit.repository import read_yaml


def test_slow_scenarios_run_only_by_name(tmp_path: Path) -> None:
    for name in ("cluster", "nvidia", "python_app"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "molecule.yml").touch()
    (tmp_path / "shared").mkdir()
    assert scenarios.in_ci(tmp_path) == ["cluster", "python_app"]


def test_a_scenario_has_the_hosts_that_its_file_or_the_shared_one_declares() -> None:
    assert {name: scenarios.hosts_in(name) for name in ("cluster", "nvidia", "gateway")} == {
        "cluster": len(lab_hosts.declared()),
        "nvidia": 3,
        "gateway": 1,
    }


def settings(part: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Return all values below a mapping by their path of keys."""
    if not isinstance(part, dict):
        return {path: part}
    return {place: value for name, each in part.items() for place, value in settings(each, (*path, name)).items()}


@pytest.mark.parametrize("name", [*scenarios.in_ci(), *scenarios.SLOW])
def test_a_scenario_repeats_nothing_of_the_shared_file(name: str) -> None:
    shared = settings(read_yaml(scenarios.SHARED))
    own = settings(read_yaml(scenarios.SCENARIOS / name / "molecule.yml") or {})
    assert {path: value for path, value in own.items() if path in shared and shared[path] == value} == {}


def test_long_scenarios_start_first(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"molecule-cluster": 900.0, "molecule-long": 90.0, "molecule-short": 9.0}
    known = {name: Expectation(1, taken) for name, taken in seconds.items()}
    monkeypatch.setattr(scenarios, "expectation", known.get)
    assert scenarios.in_order(["cluster", "short", "new", "long"]) == ["new", "cluster", "long", "short"]


def test_a_lab_in_use_is_not_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse() -> None:
        raise AssertionError("removed the lab")

    monkeypatch.setattr(docker_engine, "ensure", lambda: "runs already")
    monkeypatch.setattr(lab_hosts, "containers", lambda: {"services-1": {}})
    monkeypatch.setattr(lab_hosts, "MADE_BY_TESTS", tmp_path / "made-by-tests")
    monkeypatch.setattr(lab_hosts, "remove", refuse)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(ProblemError, match="make lab-down"):
        scenarios.prepare()


def test_hosts_of_a_killed_job_are_replaced_in_ci(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = []
    for module, name in ((docker_engine, "ensure"), (scenarios.host_image, "ensure"), (lab_hosts, "remove")):
        monkeypatch.setattr(module, name, lambda name=name: done.append(name))
    monkeypatch.setattr(lab_hosts, "prepare_machine", lambda: None)
    monkeypatch.setattr(scenarios.make_secrets, "ensure", lambda *_, **__: None)
    monkeypatch.setattr(lab_hosts, "containers", lambda: {"services-1": {}})
    monkeypatch.setattr(lab_hosts, "MADE_BY_TESTS", tmp_path / "made-by-tests")
    monkeypatch.setenv("CI", "true")
    scenarios.prepare()
    assert done == ["ensure", "ensure", "remove"]


@pytest.fixture
def seen() -> tuple[Console, io.StringIO]:
    """Return a console and its output."""
    sink = io.StringIO()
    return Console(file=sink, width=100), sink


def scenario(console: Console, *lines: str) -> scenarios.Scenario:
    """Return a scenario that has received these lines."""
    made = scenarios.Scenario(console, "cluster")
    for line in lines:
        made.take(line)
    return made


def test_progress_is_read_from_molecules_output(seen: tuple[Console, io.StringIO]) -> None:
    console, sink = seen
    made = scenario(
        console,
        "INFO     [cluster > converge] Executing",
        "PLAY [Services] ***********",
        "TASK [mlflow : Migrate the database] ******************************",
        "ok: [services-1]",
    )
    assert (made.step_name, made.task, made.tasks) == ("converge", "mlflow : Migrate the database", 2)
    assert "cluster > converge" in sink.getvalue()
    assert "Migrate the database" in str(made.__rich__())


TESTS_FAILED = """
INFO     [cluster > verify] Executing
FAILED molecule/cluster/tests/test_hosts.py::test_time[ansible://cpu-1] - AssertionError: late
ERROR    [cluster > verify] Executed: Failed (Verifier tests failed)
INFO     [cluster > destroy] Executing
TASK [Delete docker network(s)] *******
cluster > verify: Executed: Failed (Verifier tests failed)
"""
TASK_FAILED = """
INFO     [cluster > converge] Executing
TASK [object_store : Wait] *******
[ERROR]: Task failed: Timeout
fatal: [services-1]: FAILED! => {"msg": "Timeout"}
ERROR    [cluster > converge] Executed: Failed
"""


@pytest.mark.parametrize(
    ("output", "step", "failure"),
    [
        (TESTS_FAILED, "verify", "test_time[ansible://cpu-1] - AssertionError: late"),
        (TASK_FAILED, "converge", 'object_store : Wait: fatal: [services-1]: FAILED! => {"msg": "Timeout"}'),
    ],
)
def test_the_last_lines_name_the_failure(
    seen: tuple[Console, io.StringIO], output: str, step: str, failure: str
) -> None:
    made = scenario(seen[0], *output.splitlines())
    made.tell()
    assert f"cluster, in step {step}\n" in made.verdict()
    assert seen[1].getvalue().rstrip().endswith(failure)


MOLECULE = """#!/bin/sh
echo "INFO     [$3 > verify] Executing"
case $3 in
  hangs) sleep 600 & echo $! >child; wait ;;
  fails) until test -s child; do sleep 0.05; done; echo "ERROR    [$3 > verify] Executed: Failed"; exit 1 ;;
esac
"""


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a stand-in for molecule that behaves as the scenario's name says; return its folder."""
    (tmp_path / "molecule").write_text(MOLECULE)
    (tmp_path / "molecule").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    for name in ("ROOT", "BUILD", "CACHE"):
        monkeypatch.setattr(scenarios, name, tmp_path)
    monkeypatch.setattr(lab_hosts, "molecule_environment", dict)
    monkeypatch.setattr(scenarios, "remember", lambda *_: None)
    return tmp_path


def test_passed_scenarios_are_reported_with_their_time(stub: Path, seen: tuple[Console, io.StringIO]) -> None:
    begun, failed = scenarios.run(["one", "two"], 2, seen[0])
    assert ([each.name for each in begun], failed) == (["one", "two"], None)
    assert "one: passed" in seen[1].getvalue()
    assert (stub / "test-two.log").read_text() == "INFO     [two > verify] Executing\n"
    assert list(begun[1].times.steps) == ["verify"]


def test_the_first_failure_stops_everything(stub: Path, seen: tuple[Console, io.StringIO]) -> None:
    began = time.monotonic()
    begun, failed = scenarios.run(["hangs", "fails", "later"], 2, seen[0])
    assert failed is begun[1]
    assert [each.name for each in begun] == ["hangs", "fails"]
    child = Path("/proc") / (stub / "child").read_text().strip() / "stat"
    assert not child.exists() or " Z " in child.read_text()
    assert time.monotonic() - began < scenarios.PATIENCE + 10
    assert "passed" not in seen[1].getvalue()
