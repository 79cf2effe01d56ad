"""A small S3 client on the standard library, so that hosts need no SDK: signed requests, errors by code.

It also computes lifecycle rules, which two modules need.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

TIMEOUT_SECONDS = 30
STARTING_SECONDS = 60
"""How long to wait for a server that is still starting."""
STARTING = ("XMinioServerNotInitialized", "XMinioIAMNotInitialized")
EXPIRY_RULE, SCRATCH_RULE = "metalworks-expiry", "metalworks-scratch"
"""Names of our lifecycle rules in a bucket; the second exists once per prefix, with a number appended."""
SCRATCH_DAYS = 1
"""Days after which temporary objects and their old versions expire; S3's minimum."""

TEXT = {"type": "str", "required": True}
TEXTS = {"type": "list", "elements": "str"}
DAYS = {"type": "int", "default": 0}
BUCKETS: dict[str, Any] = {
    "type": "list",
    "elements": "dict",
    "options": {
        "name": TEXT,
        "versioning": {"type": "bool", "default": False},
        "expire_days": DAYS,
        "old_days": DAYS,
    },
}
CONSUMERS: dict[str, Any] = {
    "type": "list",
    "elements": "dict",
    "required": True,
    "options": {
        "name": TEXT,
        "access_key": {**TEXT, "no_log": False},
        "secret_key": {**TEXT, "no_log": True},
        "buckets": {**TEXTS, "required": True},
        "access": {"type": "str", "default": "readwrite", "choices": ["readwrite", "readonly"]},
        "reads": {**TEXTS, "default": []},
    },
}
"""Argument specs of the modules that use a store."""


Body = bytes | Iterable[bytes]


class StoreError(Exception):
    """The store refused a request, or cannot be reached."""


class UnreachableError(StoreError):
    """Nothing answers at the endpoint."""


class Reply(NamedTuple):
    """The store's response."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def ok(self) -> bool:
        """Tell whether the request succeeded."""
        return self.status < 300

    def _field(self, name: str) -> str:
        """Return a field of the error document, which is XML, or JSON from MinIO's admin API."""
        text = self.body.decode(errors="replace")
        if text.lstrip().startswith("{"):
            return str(json.loads(text).get(name, ""))
        found = re.search(rf"<{name}>([^<]+)</{name}>", text)
        return found.group(1) if found else ""

    @property
    def code(self) -> str:
        """Return the error code, such as NoSuchBucket; empty on success."""
        return "" if self.ok else self._field("Code")

    def expect(self, doing: str) -> Reply:
        """Return the reply if it is a success; otherwise raise StoreError with `doing` in its text."""
        if not self.ok:
            raise StoreError(f"{doing}: HTTP {self.status} {self.code} {self._field('Message')}".strip())
        return self


def sign(
    method: str,
    url: str,
    payload: bytes | None,
    *,
    region: str,
    access_key: str,
    secret_key: str,
    when: time.struct_time,
) -> dict[str, str]:
    """Return the headers that sign a request with AWS Signature Version 4; None is a payload that is not signed."""
    parts = urlsplit(url)
    stamp, day = time.strftime("%Y%m%dT%H%M%SZ", when), time.strftime("%Y%m%d", when)
    digest = "UNSIGNED-PAYLOAD" if payload is None else hashlib.sha256(payload).hexdigest()
    headers = {"host": parts.netloc, "x-amz-content-sha256": digest, "x-amz-date": stamp}
    names = ";".join(headers)
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    request = "\n".join([method, parts.path, parts.query, lines, names, digest])
    scope = f"{day}/{region}/s3/aws4_request"
    to_sign = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(request.encode()).hexdigest()])
    key = f"AWS4{secret_key}".encode()
    for piece in (day, region, "s3", "aws4_request", to_sign):
        key = hmac.new(key, piece.encode(), hashlib.sha256).digest()
    credential = f"{access_key}/{scope}"
    headers["authorization"] = f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={key.hex()}"
    return headers


class Store:
    """A client of an S3 endpoint with one key. It addresses buckets by path, which every store supports."""

    def __init__(self, endpoint: str, region: str, access_key: str, secret_key: str) -> None:
        """Prepare a connection, opened by the first request; raise StoreError for an endpoint that is not a URL."""
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise StoreError(f"endpoint {endpoint!r} is not an http:// or https:// URL")
        self.endpoint = f"{parts.scheme}://{parts.netloc}"
        self.region, self.access_key, self.secret_key = region, access_key, secret_key
        self._connection: HTTPConnection = (
            HTTPSConnection(parts.netloc, timeout=TIMEOUT_SECONDS, context=ssl.create_default_context())
            if parts.scheme == "https"
            else HTTPConnection(parts.netloc, timeout=TIMEOUT_SECONDS)
        )

    def ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Body = b"",
        more: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send a signed request, and repeat it while the server is starting.

        An HTTP error is a reply; no answer raises UnreachableError.
        """
        deadline = time.monotonic() + STARTING_SECONDS
        while True:
            reply = self.read(self.begin(method, path, query, body, more))
            if reply.code not in STARTING or not isinstance(body, bytes) or time.monotonic() > deadline:
                return reply
            time.sleep(0.25)

    def read(self, answer: HTTPResponse) -> Reply:
        """Read a response to its end."""
        try:
            return Reply(answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()})
        except (HTTPException, OSError) as error:
            raise self.unreachable(error) from error

    def begin(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Body = b"",
        more: Mapping[str, str] | None = None,
    ) -> HTTPResponse:
        """Send a signed request, with more headers, and return the response, whose body has to be read.

        A body in pieces is not signed, and needs its length among the headers.
        """
        pairs = [f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in (query or {}).items()]
        target = quote(path, safe="/-_.~") + ("?" + "&".join(sorted(pairs)) if pairs else "")
        headers = sign(
            method,
            self.endpoint + target,
            body if isinstance(body, bytes) else None,
            region=self.region,
            access_key=self.access_key,
            secret_key=self.secret_key,
            when=time.gmtime(),
        )
        if body and isinstance(body, bytes):  # some bucket settings require this header
            headers["content-md5"] = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        for tries in (1, 0):
            try:
                self._connection.request(method, target, body=body, headers={**headers, **(more or {})})
                return self._connection.getresponse()
            except (HTTPException, OSError) as error:
                # A server closes a connection that was idle for long, and this request is the first to notice.
                if not (tries and method == "GET" and isinstance(error, ConnectionError)):
                    raise self.unreachable(error) from error
                self.close()
        raise AssertionError

    def close(self) -> None:
        """Close the connection; the next request opens another one."""
        self._connection.close()

    def unreachable(self, error: Exception) -> UnreachableError:
        """Close the connection and return the error that says so."""
        self.close()
        return UnreachableError(f"{self.endpoint} does not answer: {error}")


class Rule(NamedTuple):
    """Expiry of objects below a prefix, and of old versions `old_days` after they became old. Empty: never."""

    name: str
    status: str
    prefix: str
    days: str
    old_days: str

    @classmethod
    def read(cls, rule: ElementTree.Element) -> Rule:
        """Read a rule from a bucket's configuration without namespaces."""
        parts = ("ID", "Status", ".//Prefix", "Expiration/Days", "NoncurrentVersionExpiration/NoncurrentDays")
        return cls(*(rule.findtext(part) or "" for part in parts))

    def element(self) -> ElementTree.Element:
        """Return the rule as an element of a bucket's configuration."""
        rule = ElementTree.Element("Rule")
        for name, text in (("ID", self.name), ("Status", self.status)):
            ElementTree.SubElement(rule, name).text = text
        ElementTree.SubElement(ElementTree.SubElement(rule, "Filter"), "Prefix").text = self.prefix
        # Without an expiry, remove a delete marker once no version is left behind it.
        kind, text = ("Days", self.days) if self.days else ("ExpiredObjectDeleteMarker", "true")
        ElementTree.SubElement(ElementTree.SubElement(rule, "Expiration"), kind).text = text
        if self.old_days:
            old = ElementTree.SubElement(rule, "NoncurrentVersionExpiration")
            ElementTree.SubElement(old, "NoncurrentDays").text = self.old_days
        return rule


def expiry(known: bytes, days: int, scratch: Sequence[str] = (), old_days: int = 0) -> bytes | None:
    """Return a bucket's lifecycle rules with ours as wanted and others unchanged; None if they already are.

    Objects expire after `days`, old versions after `old_days`; 0 means never. Objects below a prefix of `scratch`
    expire soon, with their old versions. An empty result means that no rule is left.
    """
    spaced = ElementTree.fromstring(known) if known else ElementTree.Element("LifecycleConfiguration")  # noqa: S314
    for element in spaced.iter():
        element.tag = element.tag.rpartition("}")[2]
    ours = [
        rule for rule in spaced.findall("Rule") if (rule.findtext("ID") or "").startswith((EXPIRY_RULE, SCRATCH_RULE))
    ]
    when = ["" if count == 0 else str(count) for count in (days, old_days)]
    wanted = [Rule(EXPIRY_RULE, "Enabled", "", *when)] if any(when) else []
    soon = str(SCRATCH_DAYS)
    wanted += [Rule(f"{SCRATCH_RULE}-{number}", "Enabled", prefix, soon, soon) for number, prefix in enumerate(scratch)]
    if sorted(map(Rule.read, ours)) == sorted(wanted):
        return None
    for rule in ours:
        spaced.remove(rule)
    spaced.extend(rule.element() for rule in wanted)
    return ElementTree.tostring(spaced) if len(spaced) else b""


def expiry_wanted(store: Store, bucket: str, days: int, scratch: Sequence[str] = (), old_days: int = 0) -> bytes | None:
    """Return `expiry` for a bucket of the store; raise StoreError if its rules cannot be read."""
    asked = store.ask("GET", f"/{bucket}", {"lifecycle": ""})
    none = asked.code in ("NoSuchLifecycleConfiguration", "NoSuchBucket")
    return expiry(b"" if none else asked.expect(f"lifecycle of {bucket}").body, days, scratch, old_days)
