"""scripts/tests/times.py: durations from molecule's output and pytest's report."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path

import pytest
from rich.console import Console

from scripts.tests import times as test_times

JUNIT = """<?xml version="1.0"?><testsuites><testsuite name="pytest" time="{time}">
<testcase classname="test_one" name="test_slow" time="{time}"/></testsuite></testsuites>"""


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(test_times, "BUILD", tmp_path)
    for name, file in (("VERDICT", "test.json"), ("UNIT", "unit.xml"), ("LINT", "lint.json")):
        monkeypatch.setattr(test_times, name, tmp_path / file)
    return tmp_path


def times() -> test_times.Times:
    made = test_times.Times("gateway")
    made.step("converge", 10.0)
    made.task("nginx", 12.0)
    made.task("", 15.0)
    made.task("users", 16.0)
    made.step("verify", 17.0)
    made.end(47.0)
    return made


def test_a_step_or_task_lasts_until_the_next_begins() -> None:
    assert times().steps == {"converge": 7.0, "verify": 30.0}
    assert times().tasks == [(3.0, "gateway converge", "nginx"), (1.0, "gateway converge", "users")]


def written(build: Path) -> dict[str, dict[str, float]]:
    began = time.time() - 1  # the times of files are some milliseconds behind
    for name, seconds in (("test-gateway", 25.5), ("test-gateway-alone", 12.5)):
        (build / f"{name}.xml").write_text(JUNIT.format(time=seconds))
    for name, text in (("unit.xml", JUNIT.format(time=99)), ("lint.json", '{"mypy": 30.0, "ruff": 0.5}')):
        (build / name).write_text(text)
    os.utime(build / "unit.xml", (began - 60, began - 60))
    sink = io.StringIO()
    test_times.report(Console(file=sink, width=120), [times()], began, ok=True)
    assert "verify 0:30" in sink.getvalue()
    found: dict[str, dict[str, float]] = json.loads((build / "test.json").read_text())
    return found


def test_the_verdict_has_every_part_as_a_number_and_names_the_slowest(build: Path) -> None:
    found = written(build)
    assert found["ok"] is True
    figures = found["figures"]
    assert (figures["gateway_seconds"], figures["gateway_verify_seconds"]) == (37.0, 30.0)
    assert (figures["lint_seconds"], figures["lint_mypy_seconds"], figures["tests"]) == (30.5, 30.0, 2)
    slow = {"where": "gateway", "what": "test_slow"}
    assert found["slowest_tests"] == [{"seconds": 25.5, **slow}, {"seconds": 12.5, **slow}]
    assert found["slowest_tasks"][0]["what"] == "nginx"  # type: ignore[index]


def test_results_of_an_earlier_run_do_not_count(build: Path) -> None:
    assert "unit_seconds" not in written(build)["figures"]
    times().forget()
    assert sorted(path.name for path in build.glob("*.xml")) == ["unit.xml"]
