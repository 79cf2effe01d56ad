"""Bring a set back: refuse first what cannot work, then the database, then the objects."""

from __future__ import annotations

import dataclasses
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from metalworks.backup import check, database, objects, sets
from metalworks.backup.settings import BackupSettings
from metalworks.backup.take import RESTORED, RESTORING, alone, note, noted
from metalworks.errors import CommandError

PATIENCE_SECONDS = 600.0
"""How long a restore waits for the command of a killed run, which goes on to its end on this host."""


class Plan(NamedTuple):
    """What comes back."""

    wanted: sets.BackupSet  # with the objects of the moment
    to: list[str]  # pgBackRest's options
    word: str  # what was asked for
    exact: bool  # whether the rows are known
    restored: str = ""  # when it was brought back already, and nothing else since


def parsed(to: str) -> datetime:
    """Return a moment; without a zone, it is UTC."""
    try:
        moment = datetime.fromisoformat(to)
    except ValueError:
        raise CommandError(
            f"{to} is no moment: write it like 2026-11-27T09:00 (UTC) or 2026-11-27T09:00+01:00"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def at_moment(moment: datetime, before: sets.Bucket, after: sets.Bucket) -> sets.Bucket:
    """Return a bucket at a moment between two sets: what is new since the first is in the second."""
    found = dict(before)
    for key, one in after.items():
        if datetime.fromisoformat(one.time) <= moment:
            found[key] = one
    return found


def plan(remote: objects.Rclone, name: str, to: str) -> Plan:
    """Find the set by its name, or the sets around a moment."""
    if bool(name) == bool(to):
        raise CommandError("say either a set's name or a moment: `metalworks-backup list` shows the sets")
    if name:
        wanted = objects.read(remote, name)
        return Plan(wanted, check.target(wanted), name, True)
    moment = parsed(to)
    names = objects.names(remote)
    earlier = [one for one in names if sets.moment_of(one) < moment]
    while earlier:
        wanted = objects.read(remote, earlier[-1])
        if datetime.fromisoformat(wanted.moment) <= moment:
            break
        earlier.pop()  # begun before the moment, ended after it
    else:
        raise CommandError(f"there is no set from before {to}" + (f": the first is {names[0]}" if names else ""))
    buckets = wanted.buckets
    if later := [one for one in names if one > wanted.name]:
        after = objects.read(remote, later[0])
        buckets = {bucket: at_moment(moment, buckets.get(bucket, {}), held) for bucket, held in after.buckets.items()}
    at = moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f+00")
    # The time line of the set: a restore begins another one, and is followed by a set on that.
    options = ["--type=time", f"--target={at}", "--target-timeline=current"]
    return Plan(dataclasses.replace(wanted, buckets=buckets), options, to, False)


def held(settings: BackupSettings, remote: objects.Rclone) -> list[str]:
    """Return what the hosts hold that a restore would replace."""
    found = [
        f"bucket {bucket} holds objects"
        for bucket in settings.buckets
        if remote.listing(f"{objects.STORE}:{bucket}", f"listing bucket {bucket}")
    ]
    living = database.Cluster(settings).facts()
    for place in settings.empty_tables:
        name, _, table = place.partition(".")
        if rows := living[name].rows.get(table, [0])[0]:
            found.append(f"table {table} of database {name} has {rows} rows")
    return found


def examine(settings: BackupSettings, name: str, to: str, *, replace: bool = False) -> Plan:
    """Return the plan; refuse before anything is changed what is not there, cannot be read, or would be lost."""
    with objects.rclone(settings) as remote:
        planned = plan(remote, name, to)
        version = check.backup_of(settings, planned.wanted)
        if version != settings.postgresql_bin.parent.name:
            raise CommandError(
                f"set {planned.wanted.name} is of PostgreSQL {version}, and this host has "
                f"{settings.postgresql_bin.parent.name}: restore it on a host with {version}"
            )
        check.told(planned.wanted.name, objects.missing(remote, planned.wanted))
        if not replace and noted(settings, RESTORING).get("what") != planned.word and (there := held(settings, remote)):
            before = noted(settings, RESTORED)
            if before.get("what") == planned.word:
                return planned._replace(restored=before["at"])
            raise CommandError(
                f"the hosts are not empty ({'; '.join(there)}), and a restore replaces what they hold. "
                "If that is meant, say -e restore_replace=true"
            )
    return planned


def aside(settings: BackupSettings) -> Path:
    """Return where the database's folder goes that was there before."""
    return settings.postgresql_data.with_name(f"{settings.postgresql_data.name}.before-restore")


def begin(settings: BackupSettings, planned: Plan) -> None:
    """Remember what comes back, so that a killed restore can be run again; drop what an earlier one put aside."""
    with alone(settings):
        if noted(settings, RESTORING).get("what") == planned.word:
            return
        if aside(settings).exists():
            shutil.rmtree(aside(settings))
        note(settings, RESTORING, what=planned.word)


def bring_database(settings: BackupSettings, planned: Plan) -> None:
    """Restore the database's folder. The server must be stopped; what was there stays beside it."""
    data = settings.postgresql_data
    if (data / "postmaster.pid").exists():
        raise CommandError("PostgreSQL runs: stop it first")
    with alone(settings):
        if data.exists() and not aside(settings).exists():
            data.rename(aside(settings))
        data.mkdir(mode=0o700, exist_ok=True)
        delta = ["--delta"] if any(data.iterdir()) else []
        database.restore(settings, planned.wanted.label, planned.to, data, *delta)


def compare(settings: BackupSettings, planned: Plan) -> None:
    """Wait until the server has recovered, and compare it with the set."""
    cluster = database.Cluster(settings)
    deadline = time.monotonic() + database.WAIT_SECONDS
    while cluster.sql("select pg_is_in_recovery()") != "f":
        if time.monotonic() > deadline:
            raise CommandError("the restored database does not end its recovery: see PostgreSQL's log")
        time.sleep(database.POLL_SECONDS)
    found = cluster.facts()
    wanted = planned.wanted.databases
    if not planned.exact:  # rows are known for the moments of sets only
        wanted = {name: dataclasses.replace(one, rows={}) for name, one in wanted.items()}
    check.told(planned.wanted.name, [line for one, was in wanted.items() for line in check.compared(one, was, found)])


def bring_objects(settings: BackupSettings, planned: Plan, access_key: str, secret_key: str) -> int:
    """Copy the objects into the store with a key that may write, compare them, and forget the restore."""
    able = dataclasses.replace(settings, store=settings.store | {"access_key": access_key, "secret_key": secret_key})
    copied = 0
    with alone(settings), objects.rclone(able) as remote:
        for bucket, wanted in planned.wanted.buckets.items():
            copied += objects.bring_bucket(remote, bucket, wanted)
        note(settings, RESTORED, what=planned.word)
        (settings.state / f"{RESTORING}.json").unlink(missing_ok=True)
    return copied
