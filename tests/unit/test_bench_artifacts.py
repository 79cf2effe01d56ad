"""The artifacts benchmark: how it interprets the measured times."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmarks import artifacts as bench
from scripts.benchmarks import on_host


def seen(mlflow: float, slow: str = "") -> dict[str, list[float]]:
    """Return three transfers of each kind with one outlier, which the median ignores."""
    found = {}
    for each in bench.TRANSFERS:
        found[f"{each} direct"] = [1.0, 1.0, 9.0]
        found[f"{each} mlflow"] = [10.0 if each == slow else mlflow] * 2 + [0.1]
    return found


@pytest.fixture
def verdict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(bench, "VERDICT", tmp_path / "build/bench-artifacts.json")
    monkeypatch.setattr(sys, "argv", ["bench_artifacts", "--times", "3"])
    return bench.VERDICT


@pytest.mark.parametrize(
    ("slow", "code"), [("", on_host.OK), ("20_files_up", on_host.SLOW), ("large_file_down", on_host.SLOW),
                       ("one_file_down", on_host.OK)]
)  # fmt: skip
def test_seven_tenths_of_the_stores_speed_are_wanted(
    slow: str, code: int, verdict: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(name: str, inventory: str, times: int) -> dict[str, Any]:
        return {"host": "dev-1", "seen": seen(1.4, slow)}

    monkeypatch.setattr(on_host, "measure", measure)
    assert bench.main() == code
    written = json.loads(verdict.read_text())
    assert written["ok"] is (code == on_host.OK)
    assert written["figures"]["20_files_down_vs_direct_s3"] == 0.714
    assert written["measured_on"] | {"host": "dev-1", "times": 3} == written["measured_on"]
    assert "20 files up" in capsys.readouterr().out
