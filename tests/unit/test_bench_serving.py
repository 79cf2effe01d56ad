"""The serving benchmark: how it interprets measurements."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path

import pytest

from scripts import processes
from scripts.benchmarks.measured import judged
from scripts.benchmarks.serving import __main__ as bench
from scripts.benchmarks.serving import load, measure, models, report
from scripts.benchmarks.serving.systems import PEERS, SYSTEMS, System, versions
from scripts.common import ProblemError
from scripts.inference import constant_load

WRK = """Running 10s test @ http://127.0.0.1:5801/predict
  1 threads and 16 connections
Requests/sec:  10004.17
{"requests": 100, "seconds": 2.0, "p50_ms": 1.5, "p99_ms": 3.25, "mean_ms": 2, "max_ms": 9, \
"not_2xx": 2, "connect": 0, "read": 1, "write": 0, "timeout": 4}
"""
MODEL = models.Model("ridge", Path("ridge"), Path("ridge.joblib"), ["a", "b"], [1.0, 2.0], 3.5)


def cell(system: str, per_second: float, model: str = "ridge", connections: int = 16, **more: float) -> measure.Cell:
    """Return a valid cell."""
    numbers = {"p50_ms": 1.0, "p99_ms": 2.0, "cpu_ms": 0.1, "memory_mib": 100.0, "cold_start_seconds": 2.0, **more}
    return dataclasses.replace(measure.Cell(model, system, connections, "", per_second), **numbers)


def everything() -> list[measure.Cell]:
    """Return cells that meet every target."""
    cells = [cell("noop_fastapi", 9_000), cell("noop_uvicorn", 20_000)]
    for model in models.KINDS:
        cells += [cell("ours", 12_000, model), cell("mlflow", 100, model, memory_mib=250.0, cpu_ms=8.0)]
    return [*cells, cell("ours_native", 4_000, "forest", memory_mib=200.0)]


def test_output_of_wrk_is_parsed() -> None:
    seen = load.parse(WRK)
    assert (seen.per_second, seen.p50_ms, seen.p99_ms, seen.not_2xx, seen.broken) == (50.0, 1.5, 3.25, 2, 5)


@pytest.mark.parametrize("said", ["", "unable to connect to 127.0.0.1", '{"requests": 0, "p50_ms": -nan}'])
def test_no_measurement_by_wrk_is_an_error(said: str) -> None:
    with pytest.raises(ProblemError, match="measured nothing"):
        load.parse(said)


@pytest.mark.parametrize("said", [b'{"predictions": [2.5]}', b'{"predictions": [[2.5]]}', b"[2.5]"])
def test_every_peers_response_is_parsed(said: bytes) -> None:
    assert load.prediction(said) == 2.5


@pytest.mark.parametrize("said", [b"", b"{}", b"[]", b"[1, 2]", b'{"predictions": "no"}', b"null"])
def test_a_response_without_a_prediction_is_an_error(said: bytes) -> None:
    with pytest.raises(ProblemError, match="answered"):
        load.prediction(said)


def test_all_systems_get_the_same_row() -> None:
    for system in SYSTEMS.values():
        text = json.dumps(system.body(MODEL))
        assert "1.0" in text
        assert "2.0" in text


def test_draining_ends_when_latency_is_as_when_idle() -> None:
    slow = iter([0.05, 0.05])
    asked: list[float] = []

    def probe() -> None:
        asked.append(next(slow, 0.0))
        threading.Event().wait(asked[-1])

    load.drain(probe, idle=0.001)
    assert len(asked) == 7
    with pytest.raises(ProblemError, match="not idle"):
        load.drain(lambda: threading.Event().wait(0.02), idle=0.001, limit=0.05)


def test_medians_exclude_invalid_cells() -> None:
    bad = dataclasses.replace(cell("ours", 1.0), problem="3 responses were not 2xx")
    found = report.medians([cell("ours", 10.0), cell("ours", 30.0), cell("ours", 20.0), bad])
    assert found["ridge", "ours", 16].per_second == 20.0
    assert report.medians([bad]) == {}


def test_ratios_are_larger_when_ours_is_better() -> None:
    numbers = report.figures(report.medians(everything()))
    assert numbers["ridge_c16_vs_mlflow"] == 120
    assert numbers["forest_native_c16_vs_mlflow"] == 40
    assert numbers["ridge_c16_vs_noop_uvicorn"] == 0.6
    assert numbers["ridge_cpu_vs_mlflow"] == 80
    assert numbers["ridge_c16_p99_over_p50"] == 2
    assert (numbers["ridge_memory_vs_mlflow"], numbers["memory_vs_mlflow"]) == (2.5, 1.25)


def test_a_target_that_was_not_measured_is_missed() -> None:
    assert all(target["ok"] for target in judged(report.TARGETS, report.figures(report.medians(everything()))))
    without = [found for found in everything() if found.system != "ours_native"]
    targets = judged(report.TARGETS, report.figures(report.medians(without)))
    missed = [target["figure"] for target in targets if not target["ok"]]
    assert missed == ["forest_native_c16_vs_mlflow", "forest_native_c16_p99_over_p50"]


def test_only_names_models_and_systems() -> None:
    assert bench.chosen(["ridge", "ours", "mlflow"]) == [("ridge", "ours"), ("ridge", "mlflow")]
    assert ("boosted", "ours_native") not in bench.chosen([])
    with pytest.raises(ProblemError, match="unknown name triton"):
        bench.chosen(["triton"])


def test_every_peer_is_pinned_and_has_its_lock() -> None:
    assert versions()["mlflow"]
    for system in SYSTEMS.values():
        if system.environment:
            assert "--hash=sha256:" in (PEERS / f"{system.environment}.txt").read_text()


class Half(BaseHTTPRequestHandler):
    """A server that responds with half of the right prediction."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        said = b'{"predictions": [1.75]}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def half() -> Iterator[int]:
    server = HTTPServer(("127.0.0.1", 0), Half)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def test_a_wrong_prediction_is_an_error(half: int) -> None:
    with pytest.raises(ProblemError, match=r"responded with 1.75, but the model predicts 3.5"):
        measure.right(SYSTEMS["ours"], MODEL, half, b"{}")


def test_a_server_that_does_not_start_is_reported_with_its_output(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measure, "BUILD", tmp_path)
    ends = System("Ends", "python -m scripts.no_such_module")
    cells = list(measure.cells("ends", ends, MODEL, 1, (1, 16)))
    assert [found.connections for found in cells] == [1, 16]
    assert "No module named scripts.no_such_module" in cells[0].problem


def test_a_server_is_measured_and_stopped_with_its_children(tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    child = f"{deaf}; sum(range(10**7)); print(1, flush=True); time.sleep(60)"
    program = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    log = tmp_path / "log"
    with processes.running([sys.executable, "-c", program], dict(os.environ), tmp_path, log) as server:
        while log.read_text() != "1\n":
            assert server.poll() is None
        both = processes.tree(server.pid)
        assert len(both) == 2
        assert processes.cpu_seconds(server.pid) > 0.05
        assert processes.memory_mib(server.pid) > 5
    assert processes.left(both) == []


@pytest.fixture
def verdict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(bench, "VERDICT", tmp_path / "build/bench-serving.json")
    monkeypatch.setattr(bench, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(bench, "PICTURE", tmp_path / "picture.svg")
    monkeypatch.setattr(bench.shutil, "which", lambda name: name)
    version = subprocess.CompletedProcess([], 1, "wrk debian/4.1.0 [epoll]\n", "")
    monkeypatch.setattr(bench.subprocess, "run", lambda *_, **__: version)
    return bench.VERDICT


def test_the_verdict_is_printed_and_written(
    verdict: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_serving", "--docs"])
    monkeypatch.setattr(bench, "measure", lambda *_: everything())
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    assert bench.main() == bench.OK
    written = json.loads(verdict.read_text())
    assert written["ok"]
    assert written["measured_on"]["variables"]["OPENBLAS_NUM_THREADS"] == "1"
    assert all(isinstance(value, float | int) for value in written["figures"].values())
    assert "mlflow models serve" in capsys.readouterr().out
    assert "| `ridge_c16_vs_mlflow` | at least 100 | 120 |" in (verdict.parent.parent / "page.md").read_text()
    assert "</svg>" in (verdict.parent.parent / "picture.svg").read_text()


def test_without_figures_it_exits_with_2(verdict: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_serving"])
    monkeypatch.setattr(bench, "measure", lambda *_: [measure.Cell("ridge", "ours", 16, "did not start")])
    assert bench.main() == bench.UNKNOWN
    written = json.loads(verdict.read_text())
    assert not written["ok"]
    assert written["problems"] == ["ridge ours c16: did not start"]


class Every2nd(Half):
    """Refuses every second request."""

    protocol_version = "HTTP/1.1"
    asked = 0

    def do_POST(self) -> None:
        Every2nd.asked += 1
        if Every2nd.asked % 2:
            super().do_POST()
        else:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()


def test_constant_load_records_failures_and_latencies() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Every2nd) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        request = constant_load.Request(constant_load.JSON, b"{}")
        running = constant_load.Load(server.server_address[1], [[request]] * 4, 400)
        while len(running.answers) < 20:
            time.sleep(0.01)
        running.end()
        server.shutdown()
    assert len(running.wrong) == Every2nd.asked // 2
    assert running.wrong[0].startswith("503 instead of 200")
    running.answers = [constant_load.Answer(float(at), 0, at / 100, 200, b"") for at in range(200)]
    assert running.percentile(100, 200) == 1.99
    assert running.percentile(0, 100, 0.5) == 0.5
