"""The flow benchmark: how it interprets the measured times."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmarks import flow as bench_flow
from scripts.benchmarks import flow_host as bench_flow_host
from scripts.benchmarks import on_host

HOST = "gpu-1"


def run(pick_up: float, begin: float, imports: float) -> dict[str, float]:
    """Return one run's phases: taken by a worker, process started, code in place, Prefect imported."""
    parts = {
        "pending_after_due": pick_up,
        "process_after_pending": begin / 2,
        "python_after_process": begin / 2,
        "running_after_python": imports,
        "first_line_after_running": 0.1,
    }
    return {**parts, "start": sum(parts.values()), "import": imports}


def seen(begin: float = 1.0) -> bench_flow.Seen:
    """Return runs with one outlier, which the median ignores."""
    return {
        "ours_at_once": [run(0.5, begin, 2.0), run(0.7, begin, 2.0), run(9.0, begin, 9.0)],
        "bare_at_once": [run(2.0, 0.9, 2.0)] * 3,
        "ours_scheduled": [run(-8.0, begin, 7.0)] * 3,
        "bare_scheduled": [run(-8.0, 0.9, 7.0)] * 3,
    }


def test_the_ratio_excludes_the_workers_polling_delay() -> None:
    assert bench_flow.figures(seen())["start_vs_bare_prefect"] == round(3.0 / 3.1, 3)


@pytest.mark.parametrize(("begin", "ok"), [(1.8, True), (2.0, False)])
def test_two_seconds_besides_the_import_are_allowed(begin: float, ok: bool) -> None:
    assert bench_flow.fast_enough(bench_flow.figures(seen(begin))) is ok


def test_a_slow_schedule_is_too_slow() -> None:
    slow = {**seen(), "ours_scheduled": [run(3.0, 1.0, 2.0)] * 3}
    assert not bench_flow.fast_enough(bench_flow.figures(slow))


@pytest.fixture
def verdict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(bench_flow, "VERDICT", tmp_path / "build/bench-flow.json")
    monkeypatch.setattr(sys, "argv", ["bench_flow", "--times", "3"])
    return bench_flow.VERDICT


def test_the_verdict_is_printed_and_written(
    verdict: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(name: str, inventory: str, times: int) -> dict[str, Any]:
        return {"host": HOST, "seen": seen()}

    monkeypatch.setattr(on_host, "measure", measure)
    assert bench_flow.main() == on_host.OK
    written = json.loads(verdict.read_text())
    assert written["ok"]
    assert written["measured_on"] | {"host": HOST, "times": 3} == written["measured_on"]
    assert all(isinstance(value, float) for value in written["figures"].values())
    assert "due to first line" in capsys.readouterr().out


class Answers:
    """A fake API with one run's states."""

    def ask(self, method: str, path: str) -> list[dict[str, str]]:
        times = {"Scheduled": "00", "Pending": "01", "Submitting": "02", "Running": "05"}
        return [{"name": name, "timestamp": f"1970-01-01T00:00:{second}+00:00"} for name, second in times.items()]


def test_a_start_is_split_into_parts() -> None:
    message = json.dumps({"process": 2.5, "python": 3.0, "first_line": 5.5})
    ended = {"id": "1", "state": {"type": "COMPLETED", "message": message}, "expected_start_time": "1970-01-01T00:00Z"}
    found = bench_flow_host.phases(Answers(), ended)  # type: ignore[arg-type]
    assert set(bench_flow.ROWS) <= set(found)
    assert found["python_after_process"] == 0.5
    assert (found["start"], found["import"]) == (5.5, 2.0)
    assert sum(found[part] for part in bench_flow.ROWS if part != "start") == found["start"]


def test_a_failed_run_does_not_count() -> None:
    with pytest.raises(RuntimeError, match="ended as Crashed: no environment"):
        bench_flow_host.phases(
            Answers(),  # type: ignore[arg-type]
            {"state": {"type": "CRASHED", "name": "Crashed", "message": "no environment"}},
        )
