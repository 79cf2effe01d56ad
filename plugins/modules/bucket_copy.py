#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Copy the buckets of a MinIO to another one, with old versions, and compare both."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bucket_copy
short_description: Copy the buckets of a MinIO to another one and compare both
description:
  - Copies all versions of all objects, and the marks of deleted ones. A copy has the version's id, time, ETag, type and
    metadata, as MinIO's own replication keeps them. Tags and retention of an object are not copied.
  - Reads each version on both sides and compares SHA-256. What was compared is noted in O(journal), so that a second
    run reads only what is new, also after a run that was killed. While another run has the journal, this one waits.
  - Removes what the source does not have any more. The buckets must exist on both sides.
  - In check mode, only lists the source's buckets.
options:
  source:
    type: dict
    required: true
    description: The store to read.
    suboptions: &store
      endpoint: {type: str, required: true, description: URL of the store.}
      region: {type: str, required: true, description: Region to sign requests for.}
      access_key: {type: str, required: true, description: Root user, or a key that may see all buckets.}
      secret_key: {type: str, required: true, description: The key's secret.}
  to:
    type: dict
    required: true
    description: The store to write. It must be reached directly, since the platform's gateway refuses such requests.
    suboptions: *store
  buckets: {type: list, elements: str, required: true, description: Buckets to copy.}
  journal: {type: path, required: true, description: File on the host in which to note what was compared.}
  live:
    type: bool
    default: false
    description: The source is still being written to. Copy what is there now, and do not expect the same at the end.
  workers: {type: int, default: 8, description: Versions that are copied at the same time.}
author: Metalworks (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Copy the buckets
  metalworks.platform.bucket_copy:
    source: {endpoint: https://s3.example.org, region: us-east-1, access_key: root, secret_key: "{{ vault_old }}"}
    to: {endpoint: http://127.0.0.1:9000, region: us-east-1, access_key: root, secret_key: "{{ vault_new }}"}
    buckets: [data]
    journal: /var/lib/metalworks/move/compared
"""

RETURN = r"""
unknown: {type: list, elements: str, returned: always, description: Buckets of the source that were not named.}
copied: {type: int, returned: success, description: Versions and marks that this run has copied.}
removed: {type: int, returned: success, description: Those that it has removed.}
versions: {type: int, returned: success, description: Versions whose SHA-256 is the same on both sides.}
objects: {type: int, returned: success, description: Current objects among them.}
bytes: {type: int, returned: success, description: Bytes of all versions.}
"""

import fcntl
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from ..module_utils.host_module import HostModule
from ..module_utils.s3_client import TEXT, Body, Reply, Store, StoreError

KEPT = ("cache-control", "content-disposition", "content-encoding", "content-language", "content-type", "expires")
"""Headers that belong to an object, besides `x-amz-meta-…`."""
NULL = "null"
"""Id of the only version in a bucket without versioning."""
PIECE = 1 << 20
ROUNDS = 5
"""How often to look again: the stores expire objects by themselves."""


class Version(NamedTuple):
    """A version of an object, or the mark that it was deleted."""

    key: str
    id: str
    time: str
    etag: str
    size: int
    mark: bool
    latest: bool


Name = tuple[str, str]
Listing = dict[Name, Version]


def versions(body: bytes) -> tuple[list[Version], dict[str, str]]:
    """Return the versions on a page of a listing, and where the next page begins; empty at the end."""
    page = ElementTree.fromstring(body)  # noqa: S314
    for element in page.iter():
        element.tag = element.tag.rpartition("}")[2]

    def text(element: ElementTree.Element, name: str) -> str:
        return element.findtext(name) or ""

    found = [
        Version(
            unquote_plus(text(one, "Key")),
            text(one, "VersionId"),
            text(one, "LastModified"),
            text(one, "ETag"),
            int(text(one, "Size") or 0),
            one.tag == "DeleteMarker",
            text(one, "IsLatest") == "true",
        )
        for one in page
        if one.tag in ("Version", "DeleteMarker")
    ]
    if text(page, "IsTruncated") != "true":
        return found, {}
    following = {
        "key-marker": unquote_plus(text(page, "NextKeyMarker")),
        "version-id-marker": text(page, "NextVersionIdMarker"),
    }
    return found, {name: value for name, value in following.items() if value}


def listed(store: Store, bucket: str) -> Listing:
    """Return all versions in a bucket, the newest of a key first."""
    found: Listing = {}
    after: dict[str, str] = {}
    while True:
        reply = store.ask("GET", f"/{bucket}", {"versions": "", "encoding-type": "url", **after})
        page, after = versions(reply.expect(f"{store.endpoint}: list {bucket}").body)
        found |= {(one.key, one.id): one for one in page}
        if not after:
            return found


def named(store: Store) -> list[str]:
    """Return the names of all buckets."""
    page = ElementTree.fromstring(store.ask("GET", "/").expect("list the buckets").body)  # noqa: S314
    return [one.text or "" for one in page.iter() if one.tag.rpartition("}")[2] == "Name"]


def times(found: Listing) -> dict[Name, str]:
    """Return the time to give each copy.

    Listings have milliseconds, and MinIO sorts versions by time: of those within one, the later gets more microseconds.
    """
    given, seen = {}, dict[Name, int]()
    for name, one in reversed(found.items()):
        count = seen[one.key, one.time] = seen.get((one.key, one.time), -1) + 1
        given[name] = f"{one.time.removesuffix('Z')}{count:03d}Z"
    return given


def lacking(wanted: Listing, there: Listing) -> tuple[list[Name], list[Name]]:
    """Return what to remove, and what to copy, the oldest of a key first.

    Which version is the latest follows from the others, so it is no reason to copy one.
    """

    def same(name: Name) -> bool:
        return name in there and there[name]._replace(latest=wanted[name].latest) == wanted[name]

    remove = [name for name in there if name not in wanted]
    return remove, [name for name in reversed(wanted) if not same(name)]


def headers(answer: HTTPResponse) -> dict[str, str]:
    """Return the headers of an object that its copy has, too."""
    return {
        name: value
        for name, value in answer.getheaders()
        if name.lower() in KEPT or name.lower().startswith("x-amz-meta-")
    }


class Journal:
    """What was compared, in a file that a killed run leaves whole lines of. One copy at a time has it."""

    def __init__(self, path: Path) -> None:
        """Read it, once another copy has ended: that of a killed play goes on until its target stops."""
        self.lock = threading.Lock()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.file = path.open("a+")
        fcntl.flock(self.file, fcntl.LOCK_EX)
        self.file.seek(0)
        text = self.file.read()
        whole = text[: text.rfind("\n") + 1]
        self.file.truncate(len(whole.encode()))
        self.lines = set(whole.splitlines())

    @staticmethod
    def line(bucket: str, one: Version) -> str:
        """Return the line of a version; one that was overwritten in place has another."""
        return json.dumps([bucket, one.key, one.id, one.time, one.etag, one.size])

    def has(self, bucket: str, one: Version) -> bool:
        """Tell whether a version was compared."""
        return self.line(bucket, one) in self.lines

    def add(self, bucket: str, one: Version) -> None:
        """Note that a version was compared."""
        with self.lock:
            self.file.write(f"{self.line(bucket, one)}\n")
            self.file.flush()
            self.lines.add(self.line(bucket, one))


class Copy:
    """Copies buckets."""

    def __init__(self, wants: Mapping[str, Any]) -> None:
        """Keep the places; every thread has connections of its own."""
        self.wants, self.own = wants, threading.local()
        self.journal = Journal(Path(wants["journal"]))
        self.copied = self.removed = 0

    @property
    def stores(self) -> tuple[Store, Store]:
        """The source and the target, for this thread."""
        if not hasattr(self.own, "stores"):
            self.own.stores = (Store(**self.wants["source"]), Store(**self.wants["to"]))
        found: tuple[Store, Store] = self.own.stores
        return found

    def bucket(self, bucket: str) -> Listing:
        """Copy a bucket, and return what both sides have."""
        source, to = self.stores
        for _ in range(ROUNDS):
            wanted, there = listed(source, bucket), listed(to, bucket)
            remove, copy = lacking(wanted, there)
            unread = [name for name, one in wanted.items() if not one.mark and not self.journal.has(bucket, one)]
            if wanted == there and not unread:
                return wanted
            for name in remove:
                self.ask_to("DELETE", bucket, there[name]).expect(f"remove {bucket}/{name[0]}")
                self.removed += 1
            given = times(wanted)
            copying = {*copy}
            with ThreadPoolExecutor(self.wants["workers"]) as pool:
                done = [
                    pool.submit(self.version, bucket, wanted[name], given[name], copy=name in copying)
                    for name in dict.fromkeys([*copy, *unread])
                ]
                self.copied += sum(one.result() for one in done)
            if self.wants["live"]:
                return wanted
        raise StoreError(f"bucket {bucket} differs after {ROUNDS} rounds: {self.difference(wanted, there)}")

    @staticmethod
    def difference(wanted: Listing, there: Listing) -> str:
        """Return the first difference."""
        name = next((name for name in {**wanted, **there} if wanted.get(name) != there.get(name)), None)
        return f"{wanted.get(name)}, the copy has {there.get(name)}" if name else "objects cannot be compared"

    def ask_to(
        self, method: str, bucket: str, one: Version, more: Mapping[str, str] | None = None, body: Body = b""
    ) -> Reply:
        """Ask the target for something about this very version."""
        query = {} if one.id == NULL and method == "PUT" else {"versionId": one.id}
        return self.stores[1].ask(method, f"/{bucket}/{one.key}", query, body, more)

    def version(self, bucket: str, one: Version, time: str, *, copy: bool) -> bool:
        """Copy a version, unless the target has it, and compare the contents; return whether something was copied."""
        replica = {"X-Minio-Source-Mtime": time, "X-Minio-Source-Replication-Request": "true"}
        where = f"{bucket}/{one.key} ({one.id})"
        if one.mark:
            self.ask_to("DELETE", bucket, one, {**replica, "X-Minio-Source-DeleteMarker": "true"}).expect(
                f"mark {where}"
            )
            return True
        source, to = self.stores
        answer = source.begin("GET", f"/{bucket}/{one.key}", {"versionId": one.id})
        if answer.status != 200 or answer.getheader("ETag") != one.etag:
            # It has expired or was overwritten since it was listed; the next round, or the next run, sees that.
            if answer.status not in (200, 404):
                source.read(answer).expect(f"read {where}")
            source.close()
            return False
        digest = hashlib.sha256()
        if copy:
            more = {"X-Minio-Source-Etag": one.etag.strip('"'), "Content-Length": str(one.size), **headers(answer)}
            del replica["X-Minio-Source-Replication-Request"]
            self.ask_to("PUT", bucket, one, {**replica, **more}, pieces(source, answer, digest)).expect(
                f"write {where}"
            )
        else:
            for _ in pieces(source, answer, digest):
                pass
        again = hashlib.sha256()
        written = to.begin("GET", f"/{bucket}/{one.key}", {"versionId": one.id})
        if written.status != 200:
            to.read(written).expect(f"read the copy of {where}")
        for _ in pieces(to, written, again):
            pass
        if digest.digest() != again.digest():
            raise StoreError(f"{where} differs from its copy: {digest.hexdigest()}, {again.hexdigest()}")
        self.journal.add(bucket, one)
        return copy


def pieces(store: Store, answer: HTTPResponse, digest: Any) -> Iterator[bytes]:
    """Read a body and compute its digest on the way."""
    try:
        while piece := answer.read(PIECE):
            digest.update(piece)
            yield piece
    except (HTTPException, OSError) as error:
        raise store.unreachable(error) from error


def main() -> None:
    """Read the arguments and copy."""
    store = {
        name: {**TEXT, "no_log": name == "secret_key"} for name in ("endpoint", "region", "access_key", "secret_key")
    }
    place = {"type": "dict", "required": True, "options": store}
    module = HostModule(
        argument_spec={
            "source": place,
            "to": place,
            "buckets": {"type": "list", "elements": "str", "required": True},
            "journal": {"type": "path", "required": True},
            "live": {"type": "bool", "default": False},
            "workers": {"type": "int", "default": 8},
        },
        supports_check_mode=True,
    )
    wants = module.params
    try:
        unknown = sorted({*named(Store(**wants["source"]))} - {*wants["buckets"]})
        if module.check_mode:
            module.exit_json(changed=False, unknown=unknown)
        copy = Copy(wants)
        found = [one for bucket in wants["buckets"] for one in copy.bucket(bucket).values() if not one.mark]
    except StoreError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=bool(copy.copied or copy.removed),
        unknown=unknown,
        copied=copy.copied,
        removed=copy.removed,
        versions=len(found),
        objects=sum(one.latest for one in found),
        bytes=sum(one.size for one in found),
    )


if __name__ == "__main__":
    main()
