"""The project's package is built once per state of its sources; the controller keeps the newest few."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from scripts.site import build_once, build_wheel


def test_old_wheels_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_wheel, "CACHE", tmp_path)
    for age in range(8):
        (folder := tmp_path / f"{age:016x}").mkdir()
        os.utime(folder, (1e9 - age, 1e9 - age))
    (tmp_path / "somebody-elses").mkdir()

    def build(command: list[str], **_: object) -> None:
        folder = Path(command[command.index("--out-dir") + 1])
        folder.mkdir()
        (folder / "metalworks-1.whl").touch()

    monkeypatch.setattr(subprocess, "run", build)
    wheel = build_wheel.build()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {
        ".lock",
        "somebody-elses",
        wheel.parent.name,
        *(f"{age:016x}" for age in range(build_once.KEPT - 1)),
    }
