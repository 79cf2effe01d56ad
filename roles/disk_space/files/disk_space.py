#!/usr/bin/python3
"""Announce days before that a file system will be full, of bytes or of files.

`record` runs every hour: it notes what is used, fits a line to the last days and warns in the journal; `check` measures
now and exits with 1 if there is a warning. A warning names the folders that use most, and what frees space there.

The line is Theil and Sen's: the median of the slopes between all pairs of measurements. So a data set that is copied in
one go does not look like growth that goes on. If that happens in the middle of the time, most pairs see it, so one of
the halves must have grown as well.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path
from typing import Any

DAY = 86400.0
WINDOW = 3 * DAY
"""Measurements that count: whole days, so that what is written and removed every night is no growth."""
SHORTEST = 1 * DAY
"""Without measurements over this time, such as on the day of an installation, nothing is foretold."""
GOOD = "No disk will be full within days"
FEWEST = 8
LEAST_FREE = 0.05
LOOK_AGAIN = 20 * 3600.0
"""Summing up folders reads every directory, so this is done about once a day."""
DU_SECONDS = 900
ROOT = Path("/")
STATE = Path("/var/lib/metalworks-disk-space")
HISTORY, STATUS = "history.json", "status.json"
TOP = 5
BYTES, FILES = "bytes", "files"
PLACES = ["/var/lib/*", "/var/cache/*", "/var/log", "/opt/metalworks/*", "/home/*", "/srv/*"]
MENDS = {
    "/var/lib/minio": "old versions go after old_version_days, logs of predictions after prediction_log_days",
    "/var/lib/postgresql": "flow runs go after flow_run_days, events after flow_event_days",
    "/var/lib/prefect-worker": "caches of flows go after prefect_worker_cache_days",
    "/var/cache/metalworks": "`uv cache prune --cache-dir /var/cache/metalworks/uv` frees what no release uses",
    "/var/lib/docker": "`docker system df` says what is old, `docker system prune` removes it",
    "/var/log": "journals stay below journal_max_size",
    "/home": "ask its owner",
}
"""What to do about a folder, by how its path begins."""

Sample = dict[str, float]


def folders_like(patterns: list[str]) -> list[Path]:
    """Return the folders that match a pattern; a link leads elsewhere."""
    found = [path for pattern in patterns for path in sorted(Path("/").glob(pattern[1:]) if pattern != "/" else [ROOT])]
    folders = []
    for path in found:
        try:
            if path.is_dir() and not path.is_symlink():
                folders.append(path)
        except OSError:  # a person's own mount, which nobody else may look at
            continue
    return folders


def mount_of(folder: Path) -> Path:
    """Return the mount point of a folder's file system."""
    device = folder.stat().st_dev
    while folder != ROOT and folder.parent.stat().st_dev == device:
        folder = folder.parent
    return folder


def mounts(patterns: list[str]) -> list[str]:
    """Return the mount points of the file systems that hold these folders, each once."""
    found: dict[int, str] = {}
    for folder in folders_like(patterns):
        found.setdefault(folder.stat().st_dev, str(mount_of(folder)))
    return list(found.values())


def measure(mount: str) -> dict[str, tuple[int, int]]:
    """Return what is used and what is free to services, in bytes and in files; nothing where there is no limit."""
    facts = os.statvfs(mount)
    size = facts.f_frsize
    found = {
        BYTES: ((facts.f_blocks - facts.f_bfree) * size, facts.f_bavail * size),
        FILES: (facts.f_files - facts.f_ffree, facts.f_favail),
    }
    return {kind: both for kind, both in found.items() if sum(both) > 0}


def slope(points: list[tuple[float, float]]) -> float:
    """Return the growth per second: the median of all pairs."""
    return statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(points, 2) if b[0] > a[0])


def days_left(points: list[tuple[float, float]], free: float) -> float | None:
    """Return in how many days nothing is left; None if it does not grow, or too little is known."""
    if len(points) < FEWEST or points[-1][0] - points[0][0] < SHORTEST:
        return None
    middle = len(points) // 2
    growth = min(slope(points), max(slope(points[:middle]), slope(points[middle:]))) * DAY
    return free / growth if growth > 0 else None


def amount(number: float, kind: str) -> str:
    """Return a number of bytes or files for people."""
    if kind == FILES:
        return f"{number:,.0f} files"
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def problem(mount: str, kind: str, points: list[tuple[float, float]], free: int, warning_days: float) -> str:
    """Return what is wrong with a file system; empty if nothing is."""
    used = points[-1][1]
    there = f"{amount(free, kind)} of {amount(used + free, kind)} are left"
    if free < LEAST_FREE * (used + free):
        return f"{mount} is nearly full: {there}"
    days = days_left(points, free)
    if days is not None and days < warning_days:
        return f"{mount} will be full in about {max(days, 0.1):.1f} days: {there}"
    return ""


def largest(mount: str, kind: str) -> list[str]:
    """Return the folders of a file system that use most, with what frees space there."""
    device = Path(mount).stat().st_dev
    here = [str(folder) for folder in folders_like(PLACES) if folder.stat().st_dev == device]
    if not here:
        return []
    unit = ["--inodes"] if kind == FILES else ["--block-size=1"]
    command = ["du", "--summarize", "--one-file-system", *unit, "--", *here]
    try:
        # Its status is not asked for: files that vanish meanwhile are no fault.
        done = subprocess.run(
            command, env={"LC_ALL": "C"}, capture_output=True, text=True, timeout=DU_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return [f"(their sizes were not known within {DU_SECONDS} s)"]
    sizes = [(int(size), path) for size, path in (line.split("\t", 1) for line in done.stdout.splitlines())]
    # A container may lack the capability to read all folders.
    closed = ["folders that could not be read"] if "Permission denied" in done.stderr else []
    return [described(path, size, kind) for size, path in sorted(sizes, reverse=True)[:TOP]] + closed


def described(path: str, size: int, kind: str) -> str:
    """Return what a folder uses, with what frees space there."""
    mends = [mend for start, mend in MENDS.items() if path.startswith(start)]
    return f"{path} {amount(size, kind)}" + (f" ({mends[0]})" if mends else "")


def read(path: Path) -> dict[str, Any]:
    """Return the content of a file of ours; empty if there is none, or if it is damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write(path: Path, content: dict[str, Any]) -> None:
    """Replace a file; everyone may read it."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(json.dumps(content))
    draft.chmod(0o644)
    draft.replace(path)


def look(samples: list[Sample], patterns: list[str], warning_days: float, now: float) -> tuple[Sample, dict[str, str]]:
    """Measure; return the sample, and what is wrong by `<kind> <mount>`."""
    sample: Sample = {"at": now}
    wrong = {}
    for mount in mounts(patterns):
        for kind, (used, free) in measure(mount).items():
            name = f"{kind} {mount}"
            sample[name] = used
            points = [(one["at"], one[name]) for one in [*samples, sample] if name in one]
            if text := problem(mount, kind, points, free, warning_days):
                wrong[name] = text
    return sample, wrong


def recent(history: dict[str, Any], now: float) -> list[Sample]:
    """Return the samples of the window; those of a clock that was ahead do not count."""
    return [one for one in history.get("samples", []) if now - WINDOW <= one["at"] < now]


def record(state: Path, patterns: list[str], warning_days: float, now: float) -> dict[str, str]:
    """Measure, remember, and return what is wrong, with the folders that use most."""
    history, before = read(state / HISTORY), read(state / STATUS)
    samples = recent(history, now)
    sample, wrong = look(samples, patterns, warning_days, now)
    known = before.get("folders", {})
    folders = {}
    for name in wrong:
        old = known.get(name, {"at": 0.0})
        kind, _, mount = name.partition(" ")
        fresh = now - LOOK_AGAIN <= old["at"] <= now
        folders[name] = old if fresh else {"at": now, "largest": largest(mount, kind)}
    write(state / HISTORY, {"samples": [*samples, sample]})
    write(state / STATUS, {"at": now, "problems": wrong, "line": GOOD, "folders": folders})
    return {name: told(text, folders[name]) for name, text in wrong.items()}


def told(text: str, folder: dict[str, Any]) -> str:
    """Return a warning with the folders that use most."""
    most = "; ".join(folder.get("largest", []))
    return text + (f". Most is in: {most}" if most else "") + ". See docs/upkeep.md"


def main(arguments: list[str]) -> int:
    """Record or check."""
    wants = json.loads(os.environ["DISK_SPACE"])
    folders, days, now = wants["folders"], float(wants["warning_days"]), time.time()
    if arguments == ["record"]:
        for text in record(STATE, folders, days, now).values():
            print(f"<4>{text}", flush=True)  # the journal's level: warning
        return 0
    _, wrong = look(recent(read(STATE / HISTORY), now), folders, days, now)
    known = read(STATE / STATUS).get("folders", {})
    for name, text in wrong.items():
        print(told(text, known.get(name, {})))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
