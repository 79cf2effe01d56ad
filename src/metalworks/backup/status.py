"""Say whether backups are as they should be: `metalworks-backup status`, for people, smoke and the start page."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from metalworks.backup import database
from metalworks.backup.settings import BackupSettings
from metalworks.backup.take import PREPARED, REHEARSED, TAKEN, noted
from metalworks.errors import CommandError

FREE = 0.1
"""Share of the target that should be free."""
WAITING = 5
"""Segments of WAL that may wait to be archived, each 16 MB."""


class Problem(NamedTuple):
    """What is wrong; the start page, which everyone sees, shows no more than `what`."""

    what: str
    detail: str

    def __str__(self) -> str:
        """Return both."""
        return f"{self.what}: {self.detail}"


def hours(since: str, now: datetime) -> float:
    """Return the hours since a time."""
    return (now - datetime.fromisoformat(since)).total_seconds() / 3600


def age(since: str, now: datetime) -> str:
    """Return how long ago something was, in words."""
    passed = hours(since, now)
    return f"{passed:.0f} h" if passed < 72 else f"{passed / 24:.0f} days"


def of_command(noted: dict[str, Any], what: str, since: str, most_hours: float, now: datetime) -> list[Problem]:
    """Return what is wrong with a command that runs by a timer; `since`: the time from which one was due."""
    good = noted.get("good") or {}
    last = good.get("at") or since
    found = [Problem(f"the last {what} failed", f"{noted['error']} ({noted['at']})")] if noted.get("error") else []
    if last and hours(last, now) > most_hours:
        never = "no good one yet" if not good else f"the last good one is {age(last, now)} old"
        found.append(Problem(f"a {what} is overdue", never))
    return found


def of_archive(archiver: dict[str, Any]) -> list[Problem]:
    """Return what is wrong with the archiving of WAL."""
    if archiver["on"] != "on":
        return [Problem("PostgreSQL archives no WAL", "run site.yml")]
    if archiver["failing"] or archiver["waiting"] > WAITING:
        waits = f"{archiver['waiting']} segments wait since {archiver['since']}"
        return [Problem("WAL is not archived", f"{waits}; `metalworks-backup prepare` says why, or PostgreSQL's log")]
    return []


def of_space(total: int, free: int) -> list[Problem]:
    """Return whether the target is nearly full."""
    if free < total * FREE:
        return [Problem("the target is nearly full", f"{free >> 20} of {total >> 20} MB free")]
    return []


def status(settings: BackupSettings, now: datetime | None = None) -> tuple[list[Problem], str]:
    """Return what is wrong, and one line about the last set and rehearsal."""
    now = now or datetime.now(UTC)
    taken, rehearsed = noted(settings, TAKEN), noted(settings, REHEARSED)
    since = noted(settings, PREPARED).get("at", "")
    found = of_command(taken, "backup", since, settings.max_age_hours, now)
    found += of_command(rehearsed, "rehearsal", since, settings.rehearse_max_age_days * 24, now)
    try:
        found += of_archive(database.Cluster(settings).archiver())
    except CommandError as error:
        found.append(Problem("PostgreSQL does not say whether WAL is archived", str(error)))
    if settings.folder:
        try:
            usage = shutil.disk_usage(settings.folder)
        except OSError as error:
            found.append(Problem("the target is not there", f"{settings.folder}: {error.strerror}"))
        else:
            found += of_space(usage.total, usage.free)
    return found, line(taken.get("good"), rehearsed.get("good"), now)


def line(taken: dict[str, Any] | None, rehearsed: dict[str, Any] | None, now: datetime) -> str:
    """Return one line about the last set and rehearsal."""
    last = f"last set {taken['set']}, {age(taken['at'], now)} old" if taken else "no set yet"
    tried = f"last rehearsal {age(rehearsed['at'], now)} ago" if rehearsed else "no rehearsal yet"
    return f"{last}; {tried}"


def record(file: Path, problems: list[Problem], line: str, now: datetime | None = None) -> None:
    """Write what the start page shows."""
    public = {one.what: one.what for one in problems}
    verdict = {"at": (now or datetime.now(UTC)).timestamp(), "problems": public, "line": line}
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps(verdict))
    partial.chmod(0o644)  # the unit's umask closes it
    partial.replace(file)
