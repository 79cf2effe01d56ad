"""The modules of roles/object_store: signatures, policies, and requests to a server with existing objects."""

from __future__ import annotations

import hashlib
import io
import json
import time
import zipfile
from typing import Any
from urllib.parse import unquote

import pytest

from tests.unit.repository import load

s3 = load("plugins/module_utils/s3_client.py")
provision = load("plugins/modules/minio_provision.py")
probe = load("plugins/modules/s3_probe.py")

BUCKETS = [
    {"name": "data", "versioning": True, "expire_days": 0, "old_days": 0},
    {"name": "results", "versioning": False, "expire_days": 0, "old_days": 0},
]
ADA = {
    "name": "ada", "access_key": "ada", "secret_key": "secret-ada", "buckets": ["data"], "access": "readwrite",
    "reads": [],
}  # fmt: skip
BOB = ADA | {
    "name": "bob",
    "access_key": "bob",
    "secret_key": "secret-bob",
    "buckets": ["results"],
    "access": "readonly",
}


def wants(**changes: Any) -> dict[str, Any]:
    return {
        "endpoint": "http://store:9000",
        "region": "us-east-1",
        "root_user": "root",
        "root_password": "root-password",
        "buckets": BUCKETS,
        "scratch": [],
        "consumers": [ADA, BOB],
    } | changes


class Server:
    """A fake MinIO for provisioning: it checks keys and stores what it is sent."""

    def __init__(self) -> None:
        self.buckets: dict[str, str] = {}
        self.rules: dict[str, bytes] = {}
        self.locked: set[str] = set()
        self.temporary: list[str] = []
        """Keys that have temporary keys. As in MinIO, these remain when the key is removed."""
        self.policies: dict[str, Any] = {}
        self.users: dict[str, dict[str, str]] = {}

    def reply(self, status: int, body: bytes = b"") -> Any:
        return s3.Reply(status, body, {})

    def error(self, status: int, code: str) -> Any:
        return self.reply(status, f"<Error><Code>{code}</Code></Error>".encode())

    def ask(self, store: Any, method: str, path: str, query: dict[str, str] | None, body: bytes) -> Any:
        root = {"secretKey": "root-password"}
        secret = (root if store.access_key == "root" else self.users.get(store.access_key, {})).get("secretKey")
        if secret is None:
            return self.error(403, "InvalidAccessKeyId")
        if store.secret_key != secret:
            return self.error(403, "SignatureDoesNotMatch")
        query = query or {}
        if path.startswith(provision.ADMIN):
            return self.admin(path.removeprefix(provision.ADMIN + "/"), query, body)
        name = path.strip("/")
        if "lifecycle" in query:
            return self.lifecycle(method, name, body)
        if method == "PUT" and "versioning" in query:
            self.buckets[name] = "Enabled" if b"Enabled" in body else "Suspended"
        elif method == "PUT":
            self.buckets[name] = ""
        elif "object-lock" in query:
            known = name in self.locked
            return self.reply(200) if known else self.error(404, "ObjectLockConfigurationNotFoundError")
        elif name not in self.buckets:
            return self.error(404, "NoSuchBucket")
        elif "versioning" in query:
            return self.reply(200, f"<Status>{self.buckets[name]}</Status>".encode() if self.buckets[name] else b"<x/>")
        elif store.access_key != "root" and f"arn:aws:s3:::{name}" not in self.reachable(store.access_key):
            return self.error(403, "AccessDenied")
        return self.reply(200)

    def lifecycle(self, method: str, name: str, body: bytes) -> Any:
        if name not in self.buckets:
            return self.error(404, "NoSuchBucket")
        if method == "PUT":
            # As MinIO returns it, with a namespace.
            self.rules[name] = body.replace(b"<LifecycleConfiguration>", b'<LifecycleConfiguration xmlns="http://s3">')
        elif method == "DELETE":
            del self.rules[name]
        elif name not in self.rules:
            return self.error(404, "NoSuchLifecycleConfiguration")
        return self.reply(200, self.rules.get(name, b""))

    def reachable(self, user: str) -> list[str]:
        policy = self.policies.get(self.users[user].get("policyName", ""), {"Statement": []})
        return [resource for one in policy["Statement"] for resource in one.get("Resource", [])]

    def admin(self, call: str, query: dict[str, str], body: bytes) -> Any:
        user = query.get("accessKey", query.get("userOrGroup", ""))
        if call in ("add-user", "remove-user"):
            assert user not in self.temporary or call == "remove-user", "the old secret's temporary keys would live on"
        if call == "list-canned-policies":
            return self.reply(200, json.dumps(self.policies).encode())
        if call == "add-canned-policy":
            self.policies[query["name"]] = json.loads(body)
        elif call == "remove-canned-policy":
            del self.policies[query["name"]]
        elif call == "user-info":
            if user not in self.users:
                return self.reply(404, b'{"Code":"XMinioAdminNoSuchUser","Message":"none"}')
            return self.reply(200, json.dumps(self.users[user]).encode())
        elif call == "import-bucket-metadata":
            with zipfile.ZipFile(io.BytesIO(body)) as packed:
                for file in packed.namelist():
                    assert b"<ObjectLockEnabled>Enabled<" in packed.read(file)
                    self.locked.add(file.removesuffix("/object-lock.xml"))
        elif call == "revoke-tokens/builtin":
            assert query["fullRevoke"] == "true"
            self.temporary = [one for one in self.temporary if one != query["user"]]
        elif call == "add-user":
            self.users[user] = self.users.get(user, {}) | json.loads(opened("root-password", body))
        elif call == "remove-user":
            del self.users[user]
        elif call == "set-user-or-group-policy":
            self.users[user]["policyName"] = query["policyName"]
        return self.reply(200)


def opened(secret: str, body: bytes) -> bytes:
    """Decrypt the module's message as the server would: a header package, then one final package."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    salt, algorithm, nonce, package = body[:32], body[32:33], body[33:41], body[41:]
    assert algorithm == b"\x02"
    cipher = AESGCM(hashlib.pbkdf2_hmac("sha256", secret.encode(), salt, 8192, 32))
    header = cipher.encrypt(nonce + bytes(4), b"", b"")
    return cipher.decrypt(nonce + (1).to_bytes(4, "little"), package, b"\x80" + header)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()

    def ask(store: Any, method: str, path: str, query: Any = None, body: bytes = b"") -> Any:
        return made.ask(store, method, path, query, body)

    monkeypatch.setattr(s3.Store, "ask", ask)
    return made


def run(dry: bool = False, **changes: Any) -> list[str]:
    call = provision.Provision(wants(**changes), dry=dry)
    call.run()
    return list(call.actions)


def test_signature_is_amazons() -> None:
    """An example with its signature from Amazon's documentation of Signature Version 4 (list objects)."""
    headers = s3.sign(
        "GET",
        "https://examplebucket.s3.amazonaws.com/?max-keys=2&prefix=J",
        b"",
        region="us-east-1",
        access_key="AKIAIOSFODNN7EXAMPLE",
        secret_key="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        when=time.strptime("2013-05-24", "%Y-%m-%d"),
    )
    signature = headers["authorization"].rpartition("Signature=")[2]
    assert signature == "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"<Error><Code>NoSuchBucket</Code><Message>no</Message></Error>", "NoSuchBucket"),
        (b'{"Code":"XMinioAdminNoSuchUser","Message":"no"}', "XMinioAdminNoSuchUser"),
        (b"<html>", ""),
    ],
)
def test_errors_are_told_apart_by_code(body: bytes, code: str) -> None:
    reply = s3.Reply(404, body, {})
    assert reply.code == code
    with pytest.raises(s3.StoreError, match=f"look: HTTP 404 {code}".rstrip()):
        reply.expect("look")


@pytest.mark.parametrize("endpoint", ["store:9000", "ftp://store", "http://", ""])
def test_endpoint_must_be_a_url(endpoint: str) -> None:
    with pytest.raises(s3.StoreError, match="is not an http"):
        s3.Store(endpoint, "us-east-1", "a", "b")


def test_an_unreachable_store_is_reported() -> None:
    with pytest.raises(s3.UnreachableError, match="does not answer"):
        s3.Store("http://127.0.0.1:1", "us-east-1", "a", "b").ask("GET", "/")


def test_names_in_paths_are_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def send(store: Any, method: str, target: str, **rest: Any) -> None:
        asked.append(target)
        raise OSError("enough")

    monkeypatch.setattr(s3.HTTPConnection, "request", send)
    with pytest.raises(s3.UnreachableError):
        s3.Store("http://store:9000/", "us-east-1", "a", "b").ask("GET", "/b/ü +", {"z": "1/2", "a": "é"})
    assert asked == ["/b/%C3%BC%20%2B?a=%C3%A9&z=1%2F2"]
    assert unquote(asked[0]).startswith("/b/ü +")


def test_a_policy_allows_only_its_buckets() -> None:
    statements = provision.policy(["data", "code"], "readwrite")["Statement"]
    resources = {resource for one in statements for resource in one.get("Resource", [])}
    assert resources == {f"arn:aws:s3:::{name}" for name in ("data", "code", "data/*", "code/*")}
    allowed = {action for one in statements if one["Effect"] == "Allow" for action in one["Action"]}
    assert not [action for action in allowed if "*" in action]
    assert {"s3:PutObject", "s3:GetObject", "s3:DeleteObject"} <= allowed
    # Actions that change an existing version, and those that reveal another key's uploads.
    assert not allowed & {"s3:PutObjectTagging", "s3:DeleteObjectTagging", "s3:ListBucketMultipartUploads"}
    for action in ("s3:DeleteObjectVersion", "s3:BypassGovernanceRetention"):
        (denied,) = [one for one in statements if one["Effect"] == "Deny" and action in one["Action"]]
        assert denied["Resource"] == ["arn:aws:s3:::data/*", "arn:aws:s3:::code/*"]


def test_a_readonly_policy_allows_no_writes() -> None:
    statements = provision.policy(["data"], "readonly")["Statement"]
    allowed = {action for one in statements if one["Effect"] == "Allow" for action in one["Action"]}
    assert not [action for action in allowed if action.startswith(("s3:Put", "s3:Delete", "s3:Abort"))]


def test_additional_read_access_allows_no_writes() -> None:
    statements = provision.policy(["data"], "readwrite", ["log"])["Statement"]
    allowed = {
        action
        for one in statements
        if one["Effect"] == "Allow" and {"arn:aws:s3:::log", "arn:aws:s3:::log/*"} & set(one["Resource"])
        for action in one["Action"]
    }
    assert "s3:GetObject" in allowed
    assert not [action for action in allowed if action.startswith(("s3:Put", "s3:Delete", "s3:Abort"))]
    assert provision.policy(["data"], "readwrite", []) == provision.policy(["data"], "readwrite")


def test_permanent_deletes_are_allowed_only_in_scratch_places() -> None:
    def denied(*arguments: Any) -> list[dict[str, Any]]:
        statements = provision.policy(*arguments)["Statement"]
        return [one for one in statements if "s3:DeleteObjectVersion" in one["Action"]]

    (own, read) = denied(["data"], "readwrite", ["log"], ["smoke/"])
    assert (own["Effect"], own["NotResource"], own.get("Resource")) == ("Deny", ["arn:aws:s3:::data/smoke/*"], None)
    assert (read["Effect"], read["Resource"]) == ("Deny", ["arn:aws:s3:::log/*"])
    (reader,) = denied(["data"], "readonly", [], ["smoke/"])
    assert (reader["Effect"], reader["Resource"]) == ("Deny", ["arn:aws:s3:::data/*"])


def test_overwriting_is_not_allowed() -> None:
    def denied(*arguments: Any) -> list[dict[str, Any]]:
        statements = provision.policy(*arguments)["Statement"]
        return [one for one in statements if one["Effect"] == "Deny" and "s3:PutObject" in one["Action"]]

    (versions,) = denied(["data"], "readwrite", ["log"], ["smoke/"])
    assert versions["Resource"] == ["arn:aws:s3:::data/*"]
    assert versions["Condition"]["StringLike"] == {"s3:versionid": ["?*"]}
    # Copying from an old version restores it.
    assert versions["Condition"]["Null"] == {"s3:x-amz-copy-source": [True]}
    assert denied(["data"], "readonly") == []


def test_order_in_a_policy_does_not_matter() -> None:
    ours = provision.policy(["data", "code"], "readwrite")
    theirs = {"Version": ours["Version"], "Statement": []}
    for one in reversed(ours["Statement"]):
        theirs["Statement"].append({name: part[::-1] if isinstance(part, list) else part for name, part in one.items()})
    assert provision.normal(theirs) == provision.normal(ours)
    assert provision.normal(provision.policy(["data"], "readwrite")) != provision.normal(ours)


def test_sealed_body_opens_with_the_secret() -> None:
    sealed = provision.sealed("root-password", b'{"secretKey":"x"}', b"s" * 32, b"n" * 8)
    assert opened("root-password", sealed) == b'{"secretKey":"x"}'
    assert b"secretKey" not in sealed


def test_everything_is_created_once(server: Server) -> None:
    first = run()
    assert first == [
        "create bucket data",
        "versioning of data: Enabled",
        "lock of data",
        "create bucket results",
        *(f"{what}{who}{where}" for who in ("ada", "bob") for what, where in (
            ("policy of ", ""), ("temporary keys of ", ""), ("key of ", ""), ("policy of ", " on its key"))),
    ]  # fmt: skip
    assert server.users["ada"] == {"secretKey": "secret-ada", "status": "enabled", "policyName": "metalworks-ada"}
    assert server.locked == {"data"}
    assert run() == []


def test_an_existing_bucket_is_locked(server: Server) -> None:
    server.buckets["data"] = "Enabled"
    assert run()[0] == "lock of data"
    assert server.locked == {"data"}


def test_a_failed_lock_is_an_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """MinIO's import returns 200 even if it failed."""
    monkeypatch.setattr(zipfile.ZipFile, "namelist", lambda self: [])
    with pytest.raises(s3.StoreError, match="lock of data: HTTP 404 ObjectLockConfigurationNotFoundError"):
        run()


def test_temporary_keys_are_removed_with_their_parent_key(server: Server) -> None:
    run()
    server.temporary = ["ada", "bob"]
    run(consumers=[ADA | {"secret_key": "rotated-secret"}, BOB])
    assert server.temporary == ["bob"]
    run(consumers=[ADA | {"secret_key": "rotated-secret"}])
    assert server.temporary == []


def test_a_check_changes_nothing(server: Server) -> None:
    assert run(dry=True)
    assert (server.buckets, server.locked, server.policies, server.users) == ({}, set(), {}, {})


@pytest.mark.parametrize("stop", range(12))
def test_the_next_call_completes_a_killed_one(server: Server, stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    send, sent = provision.Provision.send, 0

    def killed(self: Any, *arguments: Any, **options: Any) -> None:
        nonlocal sent
        sent += 1
        if sent > stop:
            raise KeyboardInterrupt
        send(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(provision.Provision, "send", killed)
        with pytest.raises(KeyboardInterrupt):
            run()
    run()
    assert run() == []
    assert server.users.keys() == {"ada", "bob"}


# The old key's temporary keys are removed with it.
ANEW = ["remove old key of ada", "temporary keys of ada", "key of ada", "policy of ada on its key"]


@pytest.mark.parametrize(
    ("change", "actions"),
    [
        ({"consumers": [ADA | {"secret_key": "rotated-secret"}, BOB]}, ANEW),
        ({"consumers": [ADA | {"buckets": ["data", "results"]}, BOB]}, ["policy of ada"]),
        ({"consumers": [ADA | {"access": "readonly"}, BOB]}, ["policy of ada"]),
        ({"consumers": [ADA]}, ["remove key bob", "temporary keys of bob", "remove policy metalworks-bob"]),
        ({"consumers": [ADA | {"reads": ["results"]}, BOB]}, ["policy of ada"]),
        ({"buckets": [BUCKETS[0] | {"versioning": False}, BUCKETS[1]]}, ["versioning of data: Suspended"]),
        ({"buckets": [BUCKETS[0], BUCKETS[1] | {"expire_days": 90}]}, ["expiry in results"]),
        ({"buckets": [BUCKETS[0] | {"old_days": 30}, BUCKETS[1]]}, ["expiry in data"]),
        (
            {"scratch": ["smoke/"]},
            ["expiry in data", "expiry in results", "policy of ada"],
        ),
    ],
)
def test_only_the_difference_is_sent(server: Server, change: dict[str, Any], actions: list[str]) -> None:
    run()
    assert run(dry=True, **change) == actions
    assert run(**change) == actions
    assert run(**change) == []


def test_expiry_follows_the_settings(server: Server) -> None:
    def expire(days: int) -> list[str]:
        return run(buckets=[BUCKETS[0], BUCKETS[1] | {"expire_days": days}])

    run()
    assert expire(90) == ["expiry in results"]
    assert b"<Days>90</Days>" in server.rules["results"]
    server.rules["results"] = server.rules["results"].replace(b"<Status>Enabled", b"<Status>Disabled")
    assert expire(90) == ["expiry in results"]
    assert b"<Status>Enabled" in server.rules["results"]
    assert expire(30) == ["expiry in results"]
    assert b"<Days>30</Days>" in server.rules["results"]
    assert expire(0) == ["expiry in results"]
    assert server.rules == {}
    assert expire(0) == []


def test_old_versions_expire_after_their_days(server: Server) -> None:
    run(buckets=[BUCKETS[0] | {"old_days": 30}, BUCKETS[1]])
    assert b"<NoncurrentDays>30</NoncurrentDays>" in server.rules["data"]
    # The latest version is kept; a delete marker without versions is removed.
    assert b"<Days>" not in server.rules["data"]
    assert b"<ExpiredObjectDeleteMarker>true<" in server.rules["data"]
    run(buckets=[BUCKETS[0] | {"old_days": 30, "expire_days": 90}, BUCKETS[1]])
    assert b"<Days>90</Days>" in server.rules["data"]
    run()
    assert server.rules == {}


def test_scratch_objects_and_their_versions_expire_after_a_day(server: Server) -> None:
    run()
    assert run(scratch=["smoke/", "0/smoke/"]) == [
        "expiry in data", "expiry in results", "policy of ada"
    ]  # fmt: skip
    for bucket in ("data", "results"):
        rules = s3.expiry(server.rules[bucket], 0, ["smoke/", "0/smoke/"])
        assert rules is None
        assert server.rules[bucket].count(b"<NoncurrentDays>1</NoncurrentDays>") == 2
        assert server.rules[bucket].count(b"<Prefix>smoke/</Prefix>") == 1
    assert run(scratch=["0/smoke/"]) == ["expiry in data", "expiry in results", "policy of ada"]
    assert b"<Prefix>smoke/</Prefix>" not in server.rules["data"]
    assert run() == ["expiry in data", "expiry in results", "policy of ada"]
    assert server.rules == {}


def test_rules_of_other_tools_are_kept(server: Server) -> None:
    run()
    theirs = b"<Rule><ID>theirs</ID><Status>Enabled</Status><Expiration><Days>7</Days></Expiration></Rule>"
    server.rules["results"] = b'<LifecycleConfiguration xmlns="http://s3">' + theirs + b"</LifecycleConfiguration>"
    for days, count in ((90, 3), (90, 3), (0, 2)):
        run(buckets=[BUCKETS[0], BUCKETS[1] | {"expire_days": days}], scratch=["smoke/"])
        assert theirs in server.rules["results"]
        assert server.rules["results"].count(b"<Rule>") == count


def test_tampering_is_repaired(server: Server) -> None:
    run()
    server.users["ada"] |= {"status": "disabled", "policyName": "readwrite"}
    server.policies["metalworks-bob"]["Statement"] = []
    assert run() == [*ANEW, "policy of bob"]


def test_foreign_objects_are_kept(server: Server) -> None:
    server.buckets["theirs"] = ""
    server.policies["readwrite"] = {"Statement": []}
    server.users["theirs"] = {"secretKey": "x", "status": "enabled", "policyName": "readwrite"}
    run()
    assert "theirs" in server.buckets
    assert "readwrite" in server.policies
    assert "theirs" in server.users


def test_a_key_that_is_refused_ends_the_call(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "reachable", lambda user: [])
    with pytest.raises(s3.StoreError, match="list data with the key of ada: HTTP 403 AccessDenied"):
        run()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"consumers": [ADA, BOB | {"access_key": "ada"}]}, "several consumers share an access key: ada"),
        ({"consumers": [ADA | {"access_key": "root"}]}, "which is the server's root user"),
        ({"consumers": [ADA | {"buckets": []}]}, "consumer ada has no bucket"),
        ({"buckets": [BUCKETS[0] | {"expire_days": -1}]}, "bucket data: expire_days must be a number of days"),
        ({"buckets": [BUCKETS[0] | {"old_days": -1}]}, "bucket data: old_days must be a number of days"),
        ({"consumers": [ADA | {"reads": ["log"]}]}, "consumer ada uses buckets that are not listed: log"),
        ({"consumers": [ADA | {"buckets": ["dat"]}]}, "consumer ada uses buckets that are not listed: dat"),
        ({"consumers": [ADA | {"secret_key": "short"}]}, "a secret key at least 8"),
    ],
)
def test_invalid_variables_are_named(change: dict[str, Any], message: str) -> None:
    assert message in provision.wrong(wants(**change))
    assert provision.wrong(wants()) == ""


class Elsewhere:
    """An external store."""

    def __init__(self, *, damage: bool = False, versions: bool = False, refuse: str = "") -> None:
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.paths: list[str] = []
        self.damage, self.versions, self.refuse = damage, versions, refuse

    def ask(self, method: str, path: str, query: dict[str, str] | None = None, body: bytes = b"") -> Any:
        self.asked.append(method)
        self.paths.append(path)
        if method == self.refuse:
            return s3.Reply(403, b"<Code>AccessDenied</Code>", {})
        if method == "PUT":
            self.objects[path] = body
            return s3.Reply(200, b"", {"x-amz-version-id": "v1"} if self.versions else {})
        if method == "DELETE" and query and "versionId" in query:
            return s3.Reply(403, b"<Code>AccessDenied</Code>", {})
        if method == "DELETE":
            del self.objects[path]
        return s3.Reply(200, b"other" if self.damage else self.objects.get(path, b""), {})


@pytest.mark.parametrize("versions", [False, True])
def test_probe_leaves_nothing_behind(versions: bool) -> None:
    store = Elsewhere(versions=versions)
    probe.check(store, "ada", "data", write=True)
    assert "PUT" in store.asked
    assert store.objects == {}


def test_probe_writes_to_a_scratch_place() -> None:
    store = Elsewhere()
    probe.check(store, "ada", "data", write=True, prefix="smoke/")
    assert {path.rpartition("/")[0] for path in store.paths[1:]} == {"/data/smoke"}


def test_probe_of_a_reader_writes_nothing() -> None:
    store = Elsewhere()
    probe.check(store, "ada", "data", write=False)
    assert store.asked == ["GET"]


def test_probe_names_what_is_refused() -> None:
    with pytest.raises(s3.StoreError, match="ada: write in data: HTTP 403 AccessDenied"):
        probe.check(Elsewhere(refuse="PUT"), "ada", "data", write=True)


def test_probe_detects_changed_bytes() -> None:
    store = Elsewhere(damage=True)
    with pytest.raises(s3.StoreError, match="different bytes than were written"):
        probe.check(store, "ada", "data", write=True)
    assert store.objects == {}


def test_an_expiry_is_set_if_the_key_is_allowed_to(server: Server) -> None:
    server.buckets["log"] = ""
    store = s3.Store("http://store:9000", "us-east-1", "root", "root-password")
    assert probe.expire(store, "log", 90, dry=True)
    assert server.rules == {}
    assert [probe.expire(store, "log", days, dry=False) for days in (90, 90, 0, 0)] == [True, False, True, False]
    assert server.rules == {}
    with pytest.raises(s3.StoreError, match="lifecycle of log: HTTP 403"):
        probe.expire(s3.Store("http://store:9000", "us-east-1", "ada", "x"), "log", 90, dry=False)


def test_a_store_of_others_gets_the_expiry_from_the_first_key_that_may(server: Server) -> None:
    server.buckets.update(data="Enabled", results="")
    buckets = [BUCKETS[0] | {"old_days": 30}, BUCKETS[1] | {"expire_days": 90, "old_days": 30}]
    root = ADA | {"name": "root", "access_key": "root", "secret_key": "root-password", "buckets": ["data"]}
    asked = wants(buckets=buckets, consumers=[ADA | {"buckets": ["data", "results"]}, root])
    actions, refused = probe.expire_all(asked, dry=False)
    assert actions == ["expire in data: old versions after 30 days"]
    assert b"<NoncurrentDays>30</NoncurrentDays>" in server.rules["data"]
    assert len(refused) == 1, "one warning for a bucket, however many keys were tried"
    assert refused[0].endswith("rule on the store for results that expires objects after 90 days and old versions "
                               "after 30 days")  # fmt: skip
    assert probe.expire_all(asked, dry=False)[0] == [], "a second run changes nothing"
