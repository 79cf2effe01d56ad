"""What a set says of itself (its manifest), and which of its parts are still needed. Pure functions."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from metalworks.errors import CommandError

FORMAT = 1
NAME = "%Y%m%dT%H%M%SZ"
SHAPE = re.compile(r"\d{8}T\d{6}Z")
LEAST_ROWS, SHARE = 20, 0.01
"""Rows by which a restored table may differ from what was counted around the moment: others wrote while we counted."""


class Object(NamedTuple):
    """An object of a bucket as it was at the set's moment."""

    size: int
    time: str  # when the store got this version
    sha256: str
    holder: str  # the set whose folder has the content


Bucket = dict[str, Object]


@dataclass(frozen=True)
class Database:
    """What was true of a database around the moment."""

    revisions: dict[str, str]  # table of revisions → schema revision
    rows: dict[str, list[int]]  # table → fewest and most rows


@dataclass(frozen=True)
class BackupSet:
    """A set's manifest."""

    name: str
    moment: str
    label: str  # of pgBackRest's backup
    databases: dict[str, Database]
    buckets: dict[str, Bucket]
    releases: dict[str, str] = field(default_factory=dict)  # program → release, which is named after its lock
    site: dict[str, str] = field(default_factory=dict)  # files of the inventory, without the vault
    vault: str = ""  # where the site says that the vault's copy is
    format: int = FORMAT

    @property
    def objects(self) -> int:
        """How many objects it names."""
        return sum(map(len, self.buckets.values()))

    @property
    def bytes(self) -> int:
        """How large they are together."""
        return sum(one.size for bucket in self.buckets.values() for one in bucket.values())


def name_at(moment: datetime) -> str:
    """Return the name of a set that is taken now; names sort by time."""
    return moment.astimezone(UTC).strftime(NAME)


def moment_of(name: str) -> datetime:
    """Return when the set of this name was begun."""
    return datetime.strptime(name, NAME).replace(tzinfo=UTC)


def pack(made: BackupSet) -> bytes:
    """Return the manifest as it is stored."""
    return gzip.compress(json.dumps(asdict(made), sort_keys=True).encode(), mtime=0)


def unpack(stored: bytes, name: str) -> BackupSet:
    """Return the set of a stored manifest; refuse one that is damaged or newer than this program."""
    try:
        content: dict[str, Any] = json.loads(gzip.decompress(stored))
        if content["format"] > FORMAT:
            raise CommandError(f"set {name} was written by a newer release of the platform: use that release")
        content["databases"] = {db: Database(**facts) for db, facts in content["databases"].items()}
        content["buckets"] = {
            bucket: {key: Object(*one) for key, one in objects.items()}
            for bucket, objects in content["buckets"].items()
        }
        found = BackupSet(**content)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise CommandError(f"the manifest of set {name} is damaged ({error}): use another set") from None
    if found.name != name:
        raise CommandError(f"the manifest of set {name} is that of {found.name}: use another set")
    return found


def changed(now: Mapping[str, tuple[int, str]], before: Mapping[str, Object]) -> list[str]:
    """Return the keys whose content no earlier set has."""
    return sorted(key for key, one in now.items() if key not in before or before[key][:2] != one)


def kept(names: Iterable[str], keep: int) -> list[str]:
    """Return the newest sets, which stay."""
    return sorted(names)[-keep:]


def unneeded(present: Iterable[str], holder: str, bucket: str, keep: Iterable[BackupSet]) -> list[str]:
    """Return the keys in a holder's folder of a bucket that no set names any more."""
    named = {key for one in keep for key, what in one.buckets.get(bucket, {}).items() if what.holder == holder}
    return sorted(set(present) - named)


def fulls(labels: Iterable[str]) -> int:
    """Return how many full backups these backups are or depend on."""
    return len({label.partition("_")[0] for label in labels})


def differences(database: str, wanted: Database, found: Database) -> list[str]:
    """Return what a restored database has other than the set says."""
    lines = [
        f"{database}: {table} is at {found.revisions.get(table, 'no revision')}, the set says {revision}"
        for table, revision in wanted.revisions.items()
        if found.revisions.get(table) != revision
    ]
    for table, (least, most) in sorted(wanted.rows.items()):
        rows = found.rows.get(table, [-1])[0]
        slack = max(LEAST_ROWS, int(most * SHARE)) if least != most else 0
        if rows < 0:
            lines.append(f"{database}: table {table} is missing")
        elif not least - slack <= rows <= most + slack:
            lines.append(f"{database}: table {table} has {rows} rows, the set says {least} to {most}")
    return lines


def around(before: Database, after: Database) -> Database:
    """Join what was counted before and after the moment."""
    both = {
        table: sorted([before.rows.get(table, [0])[0], after.rows.get(table, [0])[0]])
        for table in before.rows.keys() & after.rows.keys()
    }
    return Database(after.revisions, both)
