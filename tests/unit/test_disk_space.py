"""roles/disk_space: a disk that will be full is announced days before, and nothing else is."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.repository import ROOT, load

PROGRAM = ROOT / "roles/disk_space/files/disk_space.py"
disk = load("roles/disk_space/files/disk_space.py")
HOUR, DAY = 3600.0, 86400.0
GB = 10**9


def hours(many: int, grows: float, start: float = 50 * GB) -> list[tuple[float, float]]:
    """Return hourly measurements that grow by that much a day."""
    return [(hour * HOUR, start + grows * hour / 24) for hour in range(many)]


def test_steady_growth_is_foretold() -> None:
    points = hours(72, 5 * GB)
    assert disk.days_left(points, 10 * GB) == pytest.approx(2.0)
    text = disk.problem("/var", "bytes", points, 10 * GB, 3)
    assert text == "/var will be full in about 2.0 days: 10.0 GB of 74.8 GB are left"
    assert disk.problem("/var", "bytes", points, 20 * GB, 3) == ""
    assert "files are left" in disk.problem("/var", "files", hours(72, 5e5, 1e6), 10**6, 3)


@pytest.mark.parametrize("at", [1, 20, 34, 36, 60, 71])
def test_a_single_jump_is_no_growth_that_goes_on(at: int) -> None:
    points = [(time, used + (15 * GB if time >= at * HOUR else 0)) for time, used in hours(72, 0)]
    assert disk.problem("/var", "bytes", points, 10 * GB, 3) == ""


def test_what_is_removed_every_night_is_no_growth() -> None:
    dice = random.Random(3)
    points = [(hour * HOUR, 50 * GB + (hour % 24) * GB / 2 + dice.random() * GB) for hour in range(73)]
    days = disk.days_left(points, 30 * GB)
    assert days is None or days > 10


def test_nothing_is_foretold_on_the_first_day_but_a_full_disk_is_said_at_once() -> None:
    assert disk.days_left(hours(20, 100 * GB), GB * 10) is None
    assert disk.problem("/", "bytes", hours(1, 0), 2 * GB, 3) == "/ is nearly full: 2.0 GB of 52.0 GB are left"


def test_a_run_warns_remembers_and_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, watched = tmp_path / "state", tmp_path / "data"
    state.mkdir()
    (watched / "big").mkdir(parents=True)
    (watched / "small").mkdir()
    (watched / "big/file").write_bytes(bytes(3_000_000))
    monkeypatch.setattr(disk, "PLACES", [f"{watched}/*"])
    now = [1e9]
    left = {"used": 50 * GB}

    def grows(_: str) -> dict[str, tuple[int, int]]:
        return {"bytes": (int(left["used"]), int(60 * GB - left["used"]))}

    monkeypatch.setattr(disk, "measure", grows)
    said: dict[str, Any] = {}
    for _ in range(80):
        said = disk.record(state, [str(watched)], 3, now[0])
        now[0] += HOUR
        left["used"] += 2.0 * GB / 24
    (text,) = said.values()
    assert "will be full in about 1.7 days" in text
    assert f"Most is in: {watched}/big 3 MB; {watched}/small" in text
    samples = json.loads((state / "history.json").read_text())["samples"]
    assert len(samples) == 73, "the history must not grow"
    assert (state / "status.json").stat().st_mode & 0o777 == 0o644
    (state / "history.json").write_text("{damaged")
    assert disk.record(state, [str(watched)], 3, now[0]) == {}


def test_measurements_are_those_of_df() -> None:
    used, free = disk.measure("/")["bytes"]
    there = os.statvfs("/")
    assert free == pytest.approx(there.f_bavail * there.f_frsize, rel=0.05)
    known = subprocess.run(["df", "--block-size=1", "--output=used", "/"], capture_output=True, text=True, check=True)
    assert used == pytest.approx(int(known.stdout.split()[1]), rel=0.05)
    assert disk.mounts(["/", "/etc", "/no-such-folder", "/usr/*"])[0] == "/"


@pytest.mark.parametrize("least", [0.0, 1.0])
def test_a_check_fails_only_when_there_is_a_warning(tmp_path: Path, least: float) -> None:
    """As smoke runs it: in isolated mode, without a history."""
    program = tmp_path / "disk_space.py"
    program.write_text(PROGRAM.read_text().replace("LEAST_FREE = 0.05", f"LEAST_FREE = {least}"))
    wants = json.dumps({"folders": ["/"], "warning_days": 3})
    command = [sys.executable, "-I", str(program), "check"]
    done = subprocess.run(command, env={"DISK_SPACE": wants}, capture_output=True, text=True, check=False)
    assert done.returncode == bool(least), done.stderr
    assert ("/ is nearly full" in done.stdout) is bool(least)
