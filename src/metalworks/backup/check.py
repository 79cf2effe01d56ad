"""Find out whether a set is whole, and restore one beside the living to see that it can be done."""

from __future__ import annotations

import itertools
import re
import secrets
import shutil
from pathlib import Path

from metalworks.backup import database, objects, sets
from metalworks.backup.settings import BackupSettings
from metalworks.backup.take import REHEARSED, alone, noted, noting
from metalworks.errors import CommandError

SAMPLE = 200
"""Objects that are read from the target, unless all are asked for."""
SHOWN = 10


def chosen(wanted: sets.BackupSet, most: int) -> dict[str, list[str]]:
    """Return bucket → keys to read: all, or that many by chance."""
    every = [(bucket, key) for bucket, held in wanted.buckets.items() for key in held]
    some = every if len(every) <= most else secrets.SystemRandom().sample(every, most)
    found: dict[str, list[str]] = {}
    for bucket, key in some:
        found.setdefault(bucket, []).append(key)
    return found


def told(name: str, problems: list[str]) -> None:
    """Raise an error about a set's problems, if it has any."""
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise CommandError(f"set {name} is damaged:\n  " + "\n  ".join(problems[:SHOWN] + more))


def newest(remote: objects.Rclone) -> str:
    """Return the name of the newest set."""
    if not (names := objects.names(remote)):
        raise CommandError("there is no set yet: take one with playbooks/backup.yml")
    return names[-1]


def backup_of(settings: BackupSettings, wanted: sets.BackupSet) -> str:
    """Refuse a set whose backup of the database is gone or broken; return the version of PostgreSQL that it is of."""
    versions, backups = database.repository(settings)
    labels = {one["label"]: one for one in backups}
    if wanted.label not in labels:
        raise CommandError(f"set {wanted.name} needs the database's backup {wanted.label}, which the target lacks")
    if labels[wanted.label].get("error"):
        raise CommandError(f"the database's backup {wanted.label} of set {wanted.name} contains damaged pages")
    return versions[labels[wanted.label]["database"]["id"]]


def verify(settings: BackupSettings) -> list[str]:
    """Read all of the database's backups and WAL on the target; return what is wrong with them."""
    options = ["--output", "text", "--verbose", "--log-level-console=off"]
    said = database.pgbackrest(settings, "reading the database's backups", "verify", *options).decode()
    return complaints(said)


def complaints(said: str) -> list[str]:
    """Return what `pgbackrest verify` complains of; its exit code does not tell."""
    lines = [line.strip() for line in said.splitlines()]
    found = []
    for line, counts in itertools.pairwise([*lines, ""]):
        bad = ", ".join(one for one in counts.split(", ") if re.fullmatch(r"[a-z ]+: [1-9][0-9]*", one))
        if line.startswith(("archiveId:", "backup:")) and (bad or "status: invalid" in line):
            found.append(f"the database's {line.split(',')[0]}: {bad or 'invalid'}")
    if not found and "status: ok" not in lines:
        found.append(f"the database's backups: {' | '.join(lines)}")
    return found


def check(settings: BackupSettings, name: str = "", *, everything: bool = False) -> sets.BackupSet:
    """Find out whether a set is whole: all objects by name and size, some or all by content, and the database."""
    with alone(settings), objects.rclone(settings) as remote:
        wanted = objects.read(remote, name or newest(remote))
        backup_of(settings, wanted)
        problems = objects.missing(remote, wanted)
        if not problems:
            most = wanted.objects if everything else SAMPLE
            problems = objects.damaged(remote, wanted, chosen(wanted, most))
        told(wanted.name, problems + verify(settings))
    return wanted


def rehearse(settings: BackupSettings, name: str = "") -> sets.BackupSet:
    """Restore a set's database beside the living one, compare it and some objects with the set, and remove it."""
    with alone(settings), noting(settings, REHEARSED) as facts:
        with objects.rclone(settings) as remote:
            wanted = objects.read(remote, name or newest(remote))
            backup_of(settings, wanted)
            told(wanted.name, objects.missing(remote, wanted))
            told(wanted.name, objects.damaged(remote, wanted, chosen(wanted, SAMPLE)))
        room(settings, wanted)
        beside = database.Beside(settings, settings.state / "rehearsal")
        beside.remove()  # what a killed rehearsal left
        try:
            beside.restore(wanted.label, target(wanted))
            beside.start()
            found = beside.facts()
        finally:
            beside.remove()
        told(wanted.name, [line for one, was in wanted.databases.items() for line in compared(one, was, found)])
        facts |= {"set": wanted.name, "tables": sum(len(one.rows) for one in wanted.databases.values())}
        facts |= {"objects": min(SAMPLE, wanted.objects)}
    return wanted


def compared(name: str, was: sets.Database, found: dict[str, sets.Database]) -> list[str]:
    """Return the differences of a database, which may not be there at all."""
    return sets.differences(name, was, found[name]) if name in found else [f"database {name} is missing"]


def target(wanted: sets.BackupSet) -> list[str]:
    """Return to where the server recovers: the moment that bears the set's name."""
    return ["--type=name", f"--target={wanted.name}", "--target-timeline=current"]


def room(settings: BackupSettings, wanted: sets.BackupSet) -> None:
    """Refuse to restore what does not fit beside the living."""
    size = next(one["info"]["size"] for one in database.backups(settings) if one["label"] == wanted.label)
    if (free := shutil.disk_usage(settings.state).free) < size * 1.2:
        where = Path(settings.state)
        raise CommandError(f"no room for a rehearsal in {where}: {size >> 20} MB to restore, {free >> 20} MB free")


def rehearsed(settings: BackupSettings) -> dict[str, str]:
    """Return what is known of the last good rehearsal."""
    good: dict[str, str] = noted(settings, REHEARSED).get("good") or {}
    return good
