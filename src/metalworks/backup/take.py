"""Take a set: the database first, then a named moment, then the objects, and its manifest last."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from metalworks.backup import database, objects, sets
from metalworks.backup.settings import BackupSettings
from metalworks.errors import CommandError

REMOTE = ("nfs", "cifs", "smb", "fuse", "9p", "ceph", "glusterfs", "lustre", "beegfs", "afs", "gpfs", "gfs2", "ocfs2")
"""How types of file systems begin that are, or may be, of another machine."""
TAKEN, REHEARSED, PREPARED, RESTORED = "taken", "rehearsed", "prepared", "restored"
RESTORING = "restoring"
"""What is remembered from a restore's first change to its last, so that a killed one can be run again."""


@contextlib.contextmanager
def alone(settings: BackupSettings, patience: float = 0) -> Iterator[None]:
    """Let only one command work at a time; refuse a second if the first has not ended after `patience` seconds."""
    deadline = time.monotonic() + patience
    with (settings.state / "lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise CommandError("another backup, rehearsal or restore is running: wait for its end") from None
            time.sleep(database.POLL_SECONDS)
        yield


def note(settings: BackupSettings, name: str, **facts: Any) -> None:
    """Remember how something ended."""
    partial = settings.state / f".{name}.partial"
    partial.write_text(json.dumps({"at": datetime.now(UTC).isoformat(timespec="seconds"), **facts}))
    partial.replace(settings.state / f"{name}.json")


def noted(settings: BackupSettings, name: str) -> dict[str, Any]:
    """Return what was remembered, or nothing."""
    try:
        found: dict[str, Any] = json.loads((settings.state / f"{name}.json").read_text())
    except FileNotFoundError:
        return {}
    return found


@contextlib.contextmanager
def noting(settings: BackupSettings, name: str) -> Iterator[dict[str, Any]]:
    """Remember the end of a command: what it says of itself, or its error. The last good end stays known."""
    facts: dict[str, Any] = {}
    good = noted(settings, name).get("good")
    start = time.monotonic()
    try:
        yield facts
    except BaseException as error:
        note(settings, name, error=str(error) or type(error).__name__, good=good)
        raise
    now = datetime.now(UTC).isoformat(timespec="seconds")
    note(settings, name, good={"at": now, "seconds": round(time.monotonic() - start), **facts})


def file_system(path: Path, mounts: str) -> str:
    """Return the type of the file system of a path, from the text of /proc/self/mounts."""
    found = {}
    for line in mounts.splitlines():
        _, point, kind, *_ = line.split()
        found[Path(point.replace("\\040", " "))] = kind
    return next(found[place] for place in (path, *path.parents) if place in found)


def check_target(settings: BackupSettings) -> None:
    """Refuse a folder that is not there, or that is on this host although nobody said so."""
    folder = settings.folder
    if not folder:
        return
    if not folder.is_dir():
        raise CommandError(f"backup_target: {folder} is no folder on this host: mount it, or correct the path")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CommandError(f"backup_target: the user postgres cannot write to {folder}: let it")
    kind = file_system(folder.resolve(), Path("/proc/self/mounts").read_text())
    if not kind.startswith(REMOTE) and not settings.same_host:
        raise CommandError(
            f"backup_target: {folder} is on this host itself ({kind}), and would be lost with it. Mount a share of "
            "another machine there, or set backup_on_the_same_host: true if you copy it elsewhere yourself"
        )


def check_space(settings: BackupSettings, needed: int) -> None:
    """Refuse to begin copying what does not fit."""
    if settings.folder and (free := shutil.disk_usage(settings.folder).free) < needed:
        raise CommandError(
            f"the target {settings.folder} is full: {needed >> 20} MB to copy, {free >> 20} MB free. "
            "Enlarge it, or lower backup_keep_sets"
        )


def prepare(settings: BackupSettings, *, upgraded: bool = False) -> bool:
    """Make target and repository ready, so that WAL is archived; return False if they were.

    With `upgraded`, the database is another one than before, by an upgrade of its major version or back.
    """
    check_target(settings)
    database.prepare(settings, upgraded=upgraded)
    if noted(settings, PREPARED) and not upgraded:
        return False
    database.archived(settings)
    note(settings, PREPARED)
    return True


def releases(folder: Path) -> dict[str, str]:
    """Return program → release on this host; a release is named after its lock."""
    return {link.parent.name: link.resolve().name for link in sorted(folder.glob("*/current"))}


def latest(remote: objects.Rclone, names: list[str]) -> sets.BackupSet | None:
    """Return the newest set that can be read: what it has need not be copied again."""
    for name in reversed(names):
        with contextlib.suppress(CommandError):
            return objects.read(remote, name)
    return None


def take(settings: BackupSettings) -> sets.BackupSet:
    """Take a set, then remove those beyond the number to keep."""
    if not settings.vault_copy:
        raise CommandError(
            "a set holds no secret of the vault, and without vault_backup_passphrase nobody can read it: keep a copy "
            "of the vault elsewhere, and say where in backup_vault_copy"
        )
    with alone(settings), noting(settings, TAKEN) as facts:
        if under_way := noted(settings, RESTORING).get("what"):
            raise CommandError(
                f"the restore of {under_way} has not ended, and a set of half a platform helps nobody: run "
                f"playbooks/restore.yml again. If you gave it up, remove {settings.state / RESTORING}.json"
            )
        prepare(settings)
        made = make(settings)
        with objects.rclone(settings) as remote:
            tidy(settings, remote)
        (settings.state / f"{RESTORED}.json").unlink(missing_ok=True)
        facts |= {"set": made.name, "objects": made.objects, "bytes": made.bytes}
    return made


def make(settings: BackupSettings) -> sets.BackupSet:
    """Make a set and return it."""
    with objects.rclone(settings) as remote:
        known = objects.names(remote)
        before = latest(remote, known)
        if known and not before:
            # Otherwise a wrong passphrase would begin a second series beside the first.
            objects.read(remote, known[-1])
    cluster = database.Cluster(settings)
    name = sets.name_at(datetime.now(UTC))
    label = database.back_up(settings)
    first = cluster.facts()
    moment = cluster.restore_point(name)
    second = cluster.facts()
    database.archived(settings)
    at = objects.store_time(settings).isoformat().replace("+00:00", "Z")
    with objects.rclone(settings, at) as remote:
        had = before.buckets if before else {}
        needed = 0
        for bucket in settings.buckets:
            now = remote.listing(f"{objects.STORE}:{bucket}", f"listing bucket {bucket}")
            needed += sum(now[key][0] for key in sets.changed(now, had.get(bucket, {})))
        check_space(settings, needed)
        made = sets.BackupSet(
            name=name,
            moment=moment,
            label=label,
            databases={one: sets.around(first[one], second[one]) for one in first},
            buckets={
                bucket: objects.copy_bucket(remote, name, bucket, had.get(bucket, {})) for bucket in settings.buckets
            },
            releases=releases(settings.releases),
            site=settings.site,
            vault=settings.vault_copy,
        )
        objects.write(remote, made)
    return made


def tidy(settings: BackupSettings, remote: objects.Rclone) -> None:
    """Remove the sets beyond the number to keep, and what no set needs."""
    names = objects.names(remote)
    keep = sets.kept(names, settings.keep_sets)
    # Reads all that stay: what a set that cannot be read names would otherwise be removed.
    stay = [objects.read(remote, name) for name in keep]
    objects.prune(remote, stay, [name for name in names if name not in keep])
    database.expire(settings, sets.fulls(one.label for one in stay))
