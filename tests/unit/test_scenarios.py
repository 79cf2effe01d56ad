"""scripts/tests/scenarios.py: scheduling and display of scenarios, and protection of a lab in use."""

from __future__ import annotations

import io
import re
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scripts.common import ROOT, ProblemError
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
    assert {name: len(scenarios.platforms_of(name)) for name in ("cluster", "nvidia", "gateway")} == {
        "cluster": len(lab_hosts.declared()),
        "nvidia": 3,
        "gateway": 1,
    }


def test_images_of_all_releases_that_scenarios_name_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METALWORKS_LAB_SUITE", raising=False)
    assert scenarios.suites_of(["gateway"]) == ["bookworm"]
    assert scenarios.suites_of(["gateway", "mixed"]) == ["bookworm", "trixie"]
    monkeypatch.setenv("METALWORKS_LAB_SUITE", "trixie")
    assert scenarios.suites_of(["gateway"]) == ["trixie"]
    assert scenarios.suites_of(["mixed"]) == ["bookworm", "trixie"]


def settings(part: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Return all values below a mapping by their path of keys."""
    if not isinstance(part, dict):
        return {path: part}
    return {place: value for name, each in part.items() for place, value in settings(each, (*path, name)).items()}


@pytest.mark.parametrize("name", sorted({*scenarios.in_ci(), *scenarios.SLOW}))
def test_a_scenario_repeats_nothing_of_the_shared_file(name: str) -> None:
    shared = settings(read_yaml(scenarios.SHARED))
    own = settings(read_yaml(scenarios.SCENARIOS / name / "molecule.yml") or {})
    assert {path: value for path, value in own.items() if path in shared and shared[path] == value} == {}


def test_every_test_of_the_cluster_runs_in_a_lane_or_alone() -> None:
    sequence = read_yaml(scenarios.SCENARIOS / "cluster/molecule.yml")["scenario"]["test_sequence"]
    folders = [step.split()[1] for step in sequence if step.startswith("verify")]
    assert folders == ["tests/together", "tests/alone"]
    places = {path.parent.relative_to(scenarios.SCENARIOS) for path in scenarios.SCENARIOS.glob("cluster/**/test_*.py")}
    assert {str(place) for place in places if place.parent.name != "together"} == {"cluster/tests/alone"}


def test_long_scenarios_start_first(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"molecule-cluster": 900.0, "molecule-long": 90.0, "molecule-short": 9.0}
    known = {name: Expectation(1, taken) for name, taken in seconds.items()}
    monkeypatch.setattr(scenarios, "expectation", known.get)
    assert scenarios.in_order(["cluster", "short", "new", "long"]) == ["new", "cluster", "long", "short"]


@pytest.mark.parametrize(
    ("processors", "order"),
    [
        (1, ["lint", "unit", "cluster", "long", "short"]),
        (2, ["cluster", "lint", "unit", "long", "short"]),
        (9, ["cluster", "long", "short", "lint", "unit"]),
    ],
)
def test_checks_and_the_longest_scenarios_start_at_once(processors: int, order: list[str]) -> None:
    assert scenarios.with_checks(["cluster", "long", "short"], processors) == order


def host_of(clone: Path) -> dict[str, Any]:
    """Return what the engine knows about a lab host of a clone."""
    return {"HostConfig": {"Binds": [f"{clone}/.cache/uv:/var/cache/metalworks/uv:rw"]}}


@pytest.mark.parametrize(
    ("clone", "tested_here"), [(ROOT, False), (Path("/elsewhere"), False), (Path("/elsewhere"), True)]
)
def test_a_lab_in_use_is_not_replaced(
    clone: Path, tested_here: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """This clone's own mark of an interrupted test says nothing about the hosts of another clone."""

    def refuse() -> None:
        raise AssertionError("removed the lab")

    monkeypatch.setattr(docker_engine, "ensure", lambda: "runs already")
    monkeypatch.setattr(lab_hosts, "containers", lambda: {"services-1": host_of(clone)})
    monkeypatch.setattr(lab_hosts, "MADE_BY_TESTS", tmp_path / "made-by-tests")
    if tested_here:
        lab_hosts.MADE_BY_TESTS.touch()
    monkeypatch.setattr(lab_hosts, "remove", refuse)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(ProblemError, match=rf"the lab of {re.escape(str(clone))} is up.*make lab-down"):
        scenarios.prepare()


def test_scenarios_of_clones_exclude_each_other_by_host_names() -> None:
    """The order is the same in every process, so that no two wait for each other."""
    ordered = scenarios.shared_locks(["gateway", "cluster", "certificates"])
    assert ordered == ["lab", "scenario-certificates", "scenario-gateway"]
    assert scenarios.shared_locks(["gateway", "gateway", "cluster"]) == ["lab", "scenario-gateway"]


def test_all_locks_are_taken_before_hosts_are_touched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = []
    monkeypatch.setattr(scenarios, "BUILD", tmp_path)
    monkeypatch.setattr(scenarios, "VERDICT", tmp_path / "test.json")
    for module, name in ((scenarios, "lock"), (scenarios, "machine_lock")):
        monkeypatch.setattr(module, name, lambda what, name=name: done.append(f"{name} {what}") or nullcontext())
    monkeypatch.setattr(scenarios, "prepare", lambda: done.append("prepare"))
    for name in ("remove", "remove_scenario", "let_watch"):
        monkeypatch.setattr(lab_hosts, name, lambda *_, name=name: done.append(name))
    monkeypatch.setattr(scenarios.build_go, "in_background", nullcontext)
    monkeypatch.setattr(scenarios, "run", lambda *_: ([], None))
    monkeypatch.setattr(scenarios, "report", lambda *_, **__: None)
    monkeypatch.setattr(sys, "argv", ["scenarios", "gateway", "cluster"])
    assert scenarios.main() == 0
    locks = ["lock scenarios", "machine_lock lab", "machine_lock scenario-gateway"]
    assert done == [*locks, "prepare", "remove_scenario", "let_watch", "remove_scenario", "remove"]


def test_hosts_of_a_killed_job_are_replaced_in_ci(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = []
    for module, name in ((docker_engine, "ensure"), (scenarios.host_image, "ensure"), (lab_hosts, "remove")):
        monkeypatch.setattr(module, name, lambda name=name: done.append(name))
    monkeypatch.setattr(lab_hosts, "prepare_machine", lambda: None)
    monkeypatch.setattr(scenarios.make_secrets, "ensure", lambda *_, **__: None)
    monkeypatch.setattr(lab_hosts, "containers", lambda: {"services-1": host_of(Path("/elsewhere"))})
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


LINT_FAILED = "ruff: ok (1 s)\nmypy: FAILED (60 s)\nscripts/common.py:1: error: No overload"
UNIT_FAILED = "FAILED tests/unit/test_tree.py::test_lines - assert 121 <= 120\n1 failed, 2 passed in 9.1s"


@pytest.mark.parametrize(
    ("name", "output", "failure"),
    [
        ("lint", LINT_FAILED, "mypy: FAILED (60 s)"),
        ("unit", UNIT_FAILED, "FAILED tests/unit/test_tree.py::test_lines - assert 121 <= 120"),
    ],
)
def test_the_last_lines_name_a_failed_check(
    seen: tuple[Console, io.StringIO], name: str, output: str, failure: str
) -> None:
    check = scenarios.Check(seen[0], name)
    for line in output.splitlines():
        check.take(line)
    check.tell()
    assert (
        seen[1].getvalue().rstrip().endswith(f"FAILED: {name}\nThe whole output is in build/test-{name}.log\n{failure}")
    )


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
    (tmp_path / "Makefile").write_text(
        "lint:\n\t@until test -s child; do sleep 0.05; done; exit 1\nunit:\n\t@echo ok\n"
    )
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


def test_a_failed_check_stops_everything(stub: Path, seen: tuple[Console, io.StringIO]) -> None:
    begun, failed = scenarios.run(["hangs", "lint", "unit"], 2, seen[0])
    assert failed is begun[1]
    assert [each.name for each in begun] == ["hangs", "lint"]


def test_a_passed_check_makes_room_for_the_next_part(stub: Path, seen: tuple[Console, io.StringIO]) -> None:
    begun, failed = scenarios.run(["unit", "one"], 1, seen[0])
    assert ([each.name for each in begun], failed) == (["unit", "one"], None)
    assert (stub / "test-unit.log").read_text() == "ok\n"
