"""scripts/scenarios.py: which scenarios run, what is seen of them, and that a lab in use is not replaced."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from scripts import docker_engine, lab_hosts, scenarios
from scripts.common import ProblemError


def test_the_cluster_comes_last_and_slow_ones_only_by_name(tmp_path: Path) -> None:
    for name in ("cluster", "nvidia", "python_app", "zebra"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "molecule.yml").touch()
    (tmp_path / "shared").mkdir()
    assert scenarios.in_ci(tmp_path) == ["python_app", "zebra", "cluster"]


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


def test_hosts_that_a_killed_job_left_are_replaced_in_ci(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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


def test_the_view_follows_molecules_output() -> None:
    sink = io.StringIO()
    view = scenarios.View(Console(file=sink, width=100), "cluster", "2/2")
    for line in (
        "INFO     [cluster > converge] Executing",
        "TASK [mlflow : Migrate the database] ******************************",
        "ok: [services-1]",
    ):
        view.take(line)
    assert (view.step, view.task, view.tasks) == ("converge", "mlflow : Migrate the database", 1)
    assert "[2/2] cluster converge" in sink.getvalue()
    assert "Migrate the database" in str(view.__rich__())


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
def test_the_end_names_what_failed_though_molecule_went_on_to_remove_the_hosts(
    output: str, step: str, failure: str
) -> None:
    view = scenarios.View(Console(file=io.StringIO(), width=100), "cluster", "2/2")
    for line in output.splitlines():
        view.take(line)
    assert f"cluster, in its step {step}\n" in view.verdict()
    assert view.verdict().endswith(failure)
