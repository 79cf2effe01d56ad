"""The module bucket_copy: what it copies, in which order, and what it notices."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus
from xml.sax.saxutils import escape

import pytest

from tests.unit.repository import load

module = load("plugins/modules/bucket_copy.py")
s3 = load("plugins/module_utils/s3_client.py")
Version = module.Version
T1, T2 = "2026-11-29T12:53:31.683Z", "2026-11-29T12:53:31.694Z"


def page(found: list[Any], following: str = "") -> bytes:
    """Return a page of a listing as MinIO writes it."""
    entries = "".join(
        f"<{(kind := 'DeleteMarker' if one.mark else 'Version')}><Key>{quote_plus(one.key)}</Key>"
        f"<LastModified>{one.time}</LastModified><ETag>{escape(one.etag)}</ETag><Size>{one.size}</Size><IsLatest>{str(one.latest).lower()}"
        f"</IsLatest><VersionId>{one.id}</VersionId></{kind}>"
        for one in found
    )
    return (
        f'<ListVersionsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>data</Name>{following}{entries}'
        "</ListVersionsResult>"
    ).encode()


def version(key: str, name: str, time: str = T1, **more: Any) -> Any:
    return Version(key, name, time, f'"{name}"', 3, mark=False, latest=True)._replace(**more)


class Answer(io.BytesIO):
    """A response."""

    def __init__(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        super().__init__(body)
        self.status, self.headers = status, headers

    def getheaders(self) -> list[tuple[str, str]]:
        return list(self.headers.items())

    def getheader(self, name: str) -> str | None:
        return self.headers.get(name)


class Fake:
    """A store with one bucket."""

    endpoint = "http://store"

    def __init__(self, *found: Any, spoils: bool = False) -> None:
        self.found = {(one.key, one.id): one for one in found}
        self.bodies = {name: name[1].encode()[:3] for name in self.found}
        self.given: dict[Any, dict[str, str]] = {}
        self.reads = 0
        self.spoils = spoils
        self.before_read: Any = None

    def ask(self, method: str, path: str, query: Any = None, body: Any = b"", more: Any = None) -> Any:
        query, more = query or {}, more or {}
        if "versions" in query:
            return s3.Reply(200, page(list(self.found.values())), {})
        name = path.removeprefix("/data/"), query.get("versionId", "null")
        if method == "DELETE" and "X-Minio-Source-DeleteMarker" not in more:
            del self.found[name]
            return s3.Reply(204, b"", {})
        self.given[name] = dict(more)
        self.bodies[name] = b"" if method == "DELETE" else b"".join(body)
        if self.spoils:
            self.bodies[name] = b"spoilt"
        etag = f'"{more["X-Minio-Source-Etag"]}"' if method == "PUT" else ""
        time = more["X-Minio-Source-Mtime"][:23] + "Z"
        self.found[name] = Version(*name, time, etag, len(self.bodies[name]), method == "DELETE", latest=True)
        newest = sorted(self.found.values(), key=lambda one: one.time, reverse=True)
        latest = {one.key: one.id for one in reversed(newest)}
        self.found = {(one.key, one.id): one._replace(latest=latest[one.key] == one.id) for one in newest}
        return s3.Reply(200, b"", {})

    def begin(self, _: str, path: str, query: Any) -> Answer:
        if self.before_read:
            self.before_read()
        name = path.removeprefix("/data/"), query["versionId"]
        self.reads += 1
        if name not in self.found:
            return Answer(404, b"<Error><Code>NoSuchVersion</Code></Error>", {})
        headers = {"ETag": self.found[name].etag, "x-amz-meta-who": "ada", "Content-Type": "text/x", "Server": "MinIO"}
        return Answer(200, self.bodies[name], headers)

    def close(self) -> None:
        """Forget the connection."""


def copy(source: Fake, to: Fake, journal: Path, live: bool = False) -> Any:
    made = module.Copy({"journal": str(journal), "live": live, "workers": 1})

    class Stores(module.Copy):  # type: ignore[misc,name-defined]
        stores = (source, to)

    made.__class__ = Stores
    made.bucket("data")
    made.journal.file.close()  # as the end of the module does
    return made


def test_a_page_is_read_with_all_that_names_may_have() -> None:
    found = [
        version("é + %20/x", "b", T2),
        version("é + %20/x", "a", latest=False),
        version("m", "c", mark=True, etag=""),
    ]
    more = (
        "<IsTruncated>true</IsTruncated><NextKeyMarker>a+b</NextKeyMarker><NextVersionIdMarker>c</NextVersionIdMarker>"
    )
    assert module.versions(page(found)) == (found, {})
    assert module.versions(page(found, more)) == (found, {"key-marker": "a b", "version-id-marker": "c"})


def test_versions_of_one_millisecond_keep_their_order() -> None:
    found = [version("k", "new"), version("k", "old"), version("other", "x")]
    given = module.times({(one.key, one.id): one for one in found})
    assert given["k", "new"] > given["k", "old"] == given["other", "x"] == "2026-11-29T12:53:31.683000Z"


def test_all_versions_arrive_as_they_are(tmp_path: Path) -> None:
    mark = version("k", "m1m", "2026-11-29T12:53:32.000Z", mark=True, etag="", size=0)
    source = Fake(mark, version("k", "v2v", T2, latest=False), version("k", "v1v", latest=False), version("n", "null"))
    to = Fake()
    made = copy(source, to, tmp_path / "journal")
    assert (made.copied, made.removed) == (4, 0)
    assert {name: one for name, one in to.found.items() if not one.mark} == {
        name: one for name, one in source.found.items() if not one.mark
    }
    assert to.found["k", "m1m"].mark
    sent = to.given["k", "v2v"]
    assert (sent["x-amz-meta-who"], sent["Content-Type"], sent["Content-Length"]) == ("ada", "text/x", "3")
    assert "Server" not in sent


def test_a_second_run_reads_only_what_is_new(tmp_path: Path) -> None:
    source, to = Fake(version("a", "v1v"), version("b", "v2v")), Fake()
    copy(source, to, tmp_path / "journal", live=True)
    source.found["c", "v3v"], source.bodies["c", "v3v"] = version("c", "v3v", T2), b"v3v"
    del source.found["a", "v1v"]
    before = source.reads
    made = copy(source, to, tmp_path / "journal")
    assert (made.copied, made.removed, source.reads - before) == (1, 1, 1)
    assert set(to.found) == {("b", "v2v"), ("c", "v3v")}


def test_what_was_copied_and_not_compared_is_read_again(tmp_path: Path) -> None:
    """As after a kill between the two; half a line is what it may leave."""
    source, to, journal = Fake(version("a", "v1v")), Fake(), tmp_path / "journal"
    copy(source, to, journal)
    journal.write_text(journal.read_text()[:-5])
    before = source.reads
    assert copy(source, to, journal).copied == 0
    assert source.reads == before + 1
    assert len(journal.read_text().splitlines()) == 1


def test_an_object_that_was_overwritten_in_place_is_copied_again(tmp_path: Path) -> None:
    source, to = Fake(version("a", "null")), Fake()
    copy(source, to, tmp_path / "journal")
    source.found["a", "null"] = version("a", "null", T2, etag='"other"', size=5)
    source.bodies["a", "null"] = b"other"
    assert copy(source, to, tmp_path / "journal").copied == 1
    assert to.bodies["a", "null"] == b"other"


def test_another_content_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(module.StoreError, match=r"data/a \(v1v\) differs from its copy"):
        copy(Fake(version("a", "v1v")), Fake(spoils=True), tmp_path / "journal")


def test_what_expires_meanwhile_is_left_out(tmp_path: Path) -> None:
    source, to = Fake(version("a", "v1v"), version("b", "v2v")), Fake()
    source.before_read = lambda: source.found.pop(("a", "v1v"), None)
    copy(source, to, tmp_path / "journal")
    assert set(to.found) == {("b", "v2v")}


def test_stores_that_never_agree_are_an_error(tmp_path: Path) -> None:
    source = Fake(version("a", "v1v"))
    to = Fake()
    to.ask = lambda *_, **__: s3.Reply(200, page([version("strange", "x")]), {})  # type: ignore[method-assign]
    to.begin = lambda *_: Answer(200, b"", {})  # type: ignore[method-assign]
    with pytest.raises(module.StoreError, match="bucket data differs after 5 rounds"):
        copy(source, to, tmp_path / "journal")


def test_a_copy_waits_for_that_of_a_killed_play(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    first = module.Journal(journal)
    first.add("data", version("a", "v1v"))
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(module.Journal, journal)
        assert not wait([second], timeout=0.5).done
        first.add("data", version("b", "v2v"))
        first.file.close()
        assert second.result(60).has("data", version("b", "v2v"))
