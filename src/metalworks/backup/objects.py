"""Objects and manifests on the target, through rclone: its `crypt` remote encrypts and authenticates every block."""

from __future__ import annotations

import email.utils
import http.client
import json
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from metalworks.backup import sets
from metalworks.backup.programs import run
from metalworks.backup.settings import BackupSettings
from metalworks.errors import CommandError

STORE, TARGET, SETS = "store", "target", "sets"
"""Remotes: the platform's object store, the target as it is, and the target with encryption."""
FOREVER = "9999-12-31T00:00:00Z"
CLOCK_SECONDS = 10.0
CARRIES_SPACES = ["--retries", "2", "--stats", "0", "--log-level", "ERROR"]


def s3(place: dict[str, Any], at: str = "") -> dict[str, str]:
    """Return rclone's options of an S3; `at`: only what it held at that time."""
    options = {
        "type": "s3",
        "provider": "Other",
        "endpoint": place["endpoint"],
        "region": place.get("region", "us-east-1"),
        "access_key_id": place["access_key"],
        "secret_access_key": place["secret_key"],
        "force_path_style": "true",
        "no_check_bucket": "true",
        "no_head": "true",
    }
    return options | ({"version_at": at} if at else {})


def configuration(settings: BackupSettings, obscured: str, at: str = "") -> str:
    """Return rclone's configuration. Names are not encrypted: an encrypted one may be too long for a file system."""
    path = settings.folder
    place = {"type": "local"} if path else s3(settings.target)
    base = f"{TARGET}:{path or settings.target.get('bucket')}"
    remotes = {
        STORE: s3(settings.store, at),
        TARGET: place,
        SETS: {
            "type": "crypt",
            "remote": base,
            "filename_encryption": "off",
            "directory_name_encryption": "false",
            "password": obscured,
        },
    }
    return "".join(
        f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in options.items()) + "\n"
        for name, options in remotes.items()
    )


def lines(keys: Iterable[str]) -> str:
    """Return a file of keys, one a line; refuse a key that would be two."""
    listed = list(keys)
    if broken := [key for key in listed if "\n" in key or "\r" in key]:
        raise CommandError(f"the name of object {broken[0]!r} has a line break, which rclone cannot copy: rename it")
    return "".join(f"{key}\n" for key in listed)


class Rclone:
    """rclone with a configuration that only this process's user can read, and that goes with it."""

    def __init__(self, folder: Path, settings: BackupSettings, at: str = "") -> None:
        """Write the configuration into a folder that is ours."""
        self.folder = folder
        self.file = folder / "rclone.conf"
        obscured = run(["rclone", "obscure", "-"], "hiding the passphrase", settings.passphrase.encode()).decode()
        self.file.touch(mode=0o600)
        self.file.write_text(configuration(settings, obscured.strip(), at))

    def __call__(self, doing: str, *arguments: str, given: bytes = b"") -> bytes:
        """Run rclone."""
        return run(["rclone", "--config", self.file, *CARRIES_SPACES, *arguments], doing, given)

    def listing(self, where: str, doing: str) -> dict[str, tuple[int, str]]:
        """Return key → size and time of all objects below a remote; empty if the target has no such folder."""
        options = ["--recursive", "--files-only", "--no-mimetype", "--use-server-modtime"]
        try:
            found = json.loads(self(doing, "lsjson", *options, where))
        except CommandError as error:
            if "directory not found" not in str(error):
                raise
            if where.startswith(f"{STORE}:"):
                raise CommandError(f"{doing}: the object store has no such bucket") from None
            return {}
        return {one["Path"]: (one["Size"], one["ModTime"]) for one in found}

    @contextmanager
    def only(self, keys: Sequence[str]) -> Iterator[list[str]]:
        """Give the options that limit a command to these keys."""
        with tempfile.NamedTemporaryFile("w", dir=self.folder) as chosen:
            chosen.write(lines(keys))
            chosen.flush()
            yield ["--files-from-raw", chosen.name, "--no-traverse"]

    def copy(self, source: str, to: str, keys: Sequence[str], doing: str) -> None:
        """Copy these keys. What is there with another content is never overwritten."""
        if not keys:
            return
        with self.only(keys) as chosen:
            # Neither looks at times: a key is copied because it is not there yet, and must then be the same in size.
            self(doing, "copy", "--immutable", "--size-only", "--use-server-modtime", *chosen, source, to)

    def hashes(self, where: str, keys: Sequence[str], doing: str) -> dict[str, str]:
        """Read these keys and return their SHA-256."""
        if not keys:
            return {}
        with self.only(keys) as chosen:
            said = self(doing, "hashsum", "sha256", "--download", *chosen, where).decode()
        pairs = (line.split("  ", 1) for line in said.splitlines())
        return {key: digest for digest, key in pairs}

    def delete(self, where: str, keys: Sequence[str], doing: str) -> None:
        """Delete these keys below a remote."""
        if keys:
            with self.only(keys) as chosen:
                self(doing, "delete", *chosen, where)


@contextmanager
def rclone(settings: BackupSettings, at: str = "") -> Iterator[Rclone]:
    """Give rclone for the time of a command."""
    with tempfile.TemporaryDirectory(prefix="metalworks-backup-") as folder:
        yield Rclone(Path(folder), settings, at)


def store_time(settings: BackupSettings) -> datetime:
    """Return the object store's own clock, rounded up: versions bear its times, not ours."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(settings.store["endpoint"], timeout=CLOCK_SECONDS) as answer:
            date = answer.headers["Date"]
    except urllib.error.HTTPError as error:
        date = error.headers["Date"]
    except (OSError, http.client.HTTPException) as error:
        raise CommandError(f"the object store {settings.store['endpoint']} does not answer: {error}") from None
    return email.utils.parsedate_to_datetime(date) + timedelta(seconds=1)


# -- Manifests


def manifest(name: str) -> str:
    """Return where the manifest of a set is."""
    return f"{SETS}:sets/{name}.json.gz"


def names(remote: Rclone) -> list[str]:
    """Return the names of all sets, oldest first."""
    found = remote.listing(f"{SETS}:sets", "listing the sets")
    return sorted(name for key in found if sets.SHAPE.fullmatch(name := key.removesuffix(".json.gz")))


def read(remote: Rclone, name: str) -> sets.BackupSet:
    """Return a set; refuse one that is unknown or cannot be decrypted."""
    known = names(remote)
    if name not in known:
        there = f"the newest are {', '.join(known[-5:])}" if known else "the target holds none"
        raise CommandError(f"there is no set {name}: {there}")
    try:
        stored = remote("reading the manifest", "cat", manifest(name))
    except CommandError as error:
        why = f"the manifest of set {name} is damaged, or vault_backup_passphrase is not the one of this set"
        raise CommandError(f"{why} ({error})") from None
    return sets.unpack(stored, name)


def write(remote: Rclone, made: sets.BackupSet) -> None:
    """Store a manifest: under another name first, so that one that is there is whole."""
    partial = f"{SETS}:partial/{made.name}.json.gz"
    remote("writing the manifest", "rcat", partial, given=sets.pack(made))
    if sets.unpack(remote("reading the manifest back", "cat", partial), made.name) != made:
        raise CommandError("the manifest that was written reads back otherwise: check the target's disk")
    remote("naming the manifest", "moveto", partial, manifest(made.name))


def folder(holder: str, bucket: str) -> str:
    """Return where a set keeps the objects of a bucket that no earlier set had."""
    return f"{SETS}:objects/{holder}/{bucket}"


# -- Copying and checking


def copy_bucket(remote: Rclone, name: str, bucket: str, before: sets.Bucket) -> sets.Bucket:
    """Copy what no earlier set has of a bucket; return all of it as it is now."""
    source, doing = f"{STORE}:{bucket}", f"copying bucket {bucket}"
    now = remote.listing(source, f"listing bucket {bucket}")
    new = sets.changed(now, before)
    remote.copy(source, folder(name, bucket), new, doing)
    digests = remote.hashes(source, new, f"reading bucket {bucket}")
    copied = remote.listing(folder(name, bucket), doing) if new else {}
    for key in new:
        if key not in copied or key not in digests or copied[key][0] != now[key][0]:
            raise CommandError(f"{doing}: {key} is not on the target as the store has it; was it removed for good?")
    return {key: sets.Object(*one, digests[key], name) if key in digests else before[key] for key, one in now.items()}


def bring_bucket(remote: Rclone, bucket: str, wanted: sets.Bucket) -> int:
    """Copy into a bucket what it lacks of a set, and compare what was copied; return how much that was."""
    to, doing = f"{STORE}:{bucket}", f"restoring bucket {bucket}"
    there = remote.listing(to, f"listing bucket {bucket}")
    present = [key for key, one in wanted.items() if there.get(key, (-1, ""))[0] == one.size]
    same = remote.hashes(to, present, f"reading bucket {bucket}")
    lacking = {key: one for key, one in wanted.items() if same.get(key) != one.sha256}
    for holder, keys in by_holder(lacking).items():
        with remote.only(keys) as chosen:
            remote(doing, "copy", "--ignore-times", "--use-server-modtime", *chosen, folder(holder, bucket), to)
    digests = remote.hashes(to, list(lacking), f"reading bucket {bucket}")
    if wrong := [key for key, one in lacking.items() if digests.get(key) != one.sha256]:
        raise CommandError(f"{doing}: {wrong[0]} differs from the set after it was copied ({len(wrong)} in all)")
    return len(lacking)


def by_holder(bucket: sets.Bucket) -> dict[str, list[str]]:
    """Return holder → keys."""
    found: dict[str, list[str]] = {}
    for key, one in bucket.items():
        found.setdefault(one.holder, []).append(key)
    return found


def missing(remote: Rclone, wanted: sets.BackupSet) -> list[str]:
    """Return what the target lacks of a set's objects, by name and size."""
    found = []
    for bucket, objects in wanted.buckets.items():
        for holder, keys in by_holder(objects).items():
            there = remote.listing(folder(holder, bucket), f"listing objects of set {holder}")
            for key in keys:
                if key not in there:
                    found.append(f"object {bucket}/{key} is missing on the target (objects/{holder})")
                elif there[key][0] != objects[key].size:
                    sizes = f"{there[key][0]} bytes on the target, the set says {objects[key].size}"
                    found.append(f"object {bucket}/{key} has {sizes}")
    return found


def damaged(remote: Rclone, wanted: sets.BackupSet, chosen: dict[str, list[str]]) -> list[str]:
    """Read objects from the target, bucket → keys, and return what is wrong with them."""
    found = []
    for bucket, keys in chosen.items():
        objects = {key: wanted.buckets[bucket][key] for key in keys}
        for holder, held in by_holder(objects).items():
            try:
                digests = remote.hashes(folder(holder, bucket), held, f"reading objects of bucket {bucket}")
            except CommandError as error:
                found.append(f"objects of bucket {bucket} cannot be read: {error}")
                continue
            for key in held:
                if digests.get(key) != objects[key].sha256:
                    found.append(f"object {bucket}/{key} has another content than the set says")
    return found


def prune(remote: Rclone, keep: Sequence[sets.BackupSet], drop: Iterable[str]) -> int:
    """Remove the manifests of these sets, then objects that no set names; return how many objects went."""
    for name in drop:
        remote(f"removing set {name}", "deletefile", manifest(name))
    holders: dict[tuple[str, str], list[str]] = {}
    for path in remote.listing(f"{SETS}:objects", "listing all objects"):
        holder, bucket, key = path.split("/", 2)
        holders.setdefault((holder, bucket), []).append(key)
    gone = 0
    for (holder, bucket), keys in holders.items():
        unneeded = sets.unneeded(keys, holder, bucket, keep)
        remote.delete(folder(holder, bucket), unneeded, "removing objects that no set names")
        gone += len(unneeded)
    return gone
