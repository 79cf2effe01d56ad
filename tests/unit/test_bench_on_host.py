"""Benchmarks that run on a host: without a measurement there is no verdict."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scripts.benchmarks import artifacts, flow, on_host


@pytest.mark.parametrize("bench", [artifacts, flow], ids=["artifacts", "flow"])
def test_a_failed_measurement_leaves_no_verdict(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict = tmp_path / "verdict.json"
    verdict.write_text("of yesterday")

    def unreachable(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[3] == f"playbooks/bench_{bench.__name__.rpartition('.')[2]}.yml"
        return subprocess.CompletedProcess(command, 4, "", "dev-1 is unreachable")

    monkeypatch.setattr(bench, "VERDICT", verdict)
    monkeypatch.setattr(sys, "argv", ["bench"])
    monkeypatch.setattr(subprocess, "run", unreachable)
    assert bench.main() == on_host.UNKNOWN
    assert not verdict.exists()
    assert "dev-1 is unreachable" in capsys.readouterr().err
