"""Attacks with a store key on another key's objects, as raw requests, because SDKs do not send them.

Each attack gets its own victim, whose state is compared before and after.
The tests of this scenario and of the lab use the list. By hand, against any store with buckets that keep versions:

    python molecule/object_store/tests/attacks.py < asked.json

where `asked.json` is, for example, {"endpoint": "http://127.0.0.1:9000", "owner": ["root", "its password"],
"keys": {"ml1": "its secret"}, "buckets": ["training-data"], "gateway": false}. With `gateway`, it also tries what a
gateway in front of the store must refuse. Needs only the standard library.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import http.client
import io
import json
import re
import ssl
import sys
import tarfile
import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

REGION = "us-east-1"
LONG_AGO, LATER = "2001-01-01T00:00:00.000000001Z", "2099-01-01T00:00:00.000000001Z"
FORM = {"content-type": "application/x-www-form-urlencoded"}
OTHER_CONTENT = b"the attacker's"


class Reply(NamedTuple):
    """A response."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def done(self) -> bool:
        """Tell whether the request succeeded; a batch reports partial failures in its body."""
        return self.status < 300 and b"<Error>" not in self.body


def encoded(pairs: list[tuple[str, str]]) -> str:
    return urlencode(sorted(pairs), quote_via=quote, safe="-_.~")


class Key:
    """A client with a key that sends any method, path, query and headers unchanged."""

    def __init__(self, endpoint: str, access_key: str, secret_key: str, token: str = "", ca: str | None = None) -> None:
        self.endpoint, self.access_key, self.secret_key, self.token = urlsplit(endpoint), access_key, secret_key, token
        self.context = ssl.create_default_context(cafile=ca)

    def signature(self, scope: str, to_sign: str) -> str:
        key = f"AWS4{self.secret_key}".encode()
        for piece in scope.split("/"):
            key = hmac.new(key, piece.encode(), hashlib.sha256).digest()
        return hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()

    def ask(
        self,
        method: str,
        path: str,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        *,
        service: str = "s3",
        presigned: bool = False,
    ) -> Reply:
        """Send a signed request; the path is not yet encoded, the query is.

        A presigned request signs only its host, like the URLs that MLflow issues.
        """
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
        scope = f"{stamp[:8]}/{REGION}/{service}/aws4_request"
        target, sent = quote(path, safe="/-_.~%"), dict(headers or {})
        if self.token:
            sent["x-amz-security-token"] = self.token
        signed = {"host": self.endpoint.netloc}
        digest = "UNSIGNED-PAYLOAD"
        if presigned:
            names = {"Algorithm": "AWS4-HMAC-SHA256", "Credential": f"{self.access_key}/{scope}", "Date": stamp}
            names |= {"Expires": "60", "SignedHeaders": "host"}
            query = "&".join(filter(None, [query, encoded([(f"X-Amz-{name}", text) for name, text in names.items()])]))
        else:
            digest = hashlib.sha256(body).hexdigest()
            sent |= {"x-amz-content-sha256": digest, "x-amz-date": stamp}
            signed |= {name.lower(): text for name, text in sent.items()}
        canonical = encoded(parse_qsl(query, keep_blank_values=True))
        lines = "".join(f"{name}:{signed[name].strip()}\n" for name in sorted(signed))
        request = "\n".join([method, target, canonical, lines, ";".join(sorted(signed)), digest])
        to_sign = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(request.encode()).hexdigest()])
        signature = self.signature(scope, to_sign)
        if presigned:
            query += f"&X-Amz-Signature={signature}"
        else:
            sent["authorization"] = (
                f"AWS4-HMAC-SHA256 Credential={self.access_key}/{scope}, "
                f"SignedHeaders={';'.join(sorted(signed))}, Signature={signature}"
            )
        return self.send(method, f"{target}?{query}" if query else target, sent, body)

    def send(self, method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
        """Send a request without changes."""
        if self.endpoint.scheme == "https":
            connection: Any = http.client.HTTPSConnection(self.endpoint.netloc, timeout=30, context=self.context)
        else:
            connection = http.client.HTTPConnection(self.endpoint.netloc, timeout=30)
        try:
            connection.request(method, target, body, dict(headers))
            answer = connection.getresponse()
            return Reply(answer.status, answer.read(), {name.lower(): text for name, text in answer.getheaders()})
        finally:
            connection.close()


class Victim(NamedTuple):
    """The victim: an object with two versions, of which the older one is attacked."""

    bucket: str
    folder: str
    key: str
    version: str

    @property
    def path(self) -> str:
        return f"/{self.bucket}/{self.key}"


def parts(*fields: tuple[str, str]) -> tuple[dict[str, str], bytes]:
    """Return headers and body of a form upload, as a browser sends it."""
    border = uuid.uuid4().hex
    lines = [f'--{border}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n' for name, text in fields]
    disposition = 'Content-Disposition: form-data; name="file"; filename="f"'
    lines.append(f"--{border}\r\n{disposition}\r\n\r\n{OTHER_CONTENT.decode()}\r\n--{border}--\r\n")
    return {"content-type": f"multipart/form-data; boundary={border}"}, "".join(lines).encode()


def form(a: Key, v: Victim, query: str = "", fields: Mapping[str, str] | None = None, **headers: str) -> Reply:
    """Upload with a form whose policy is signed."""
    now = datetime.datetime.now(datetime.UTC)
    stamp, until = now.strftime("%Y%m%dT%H%M%SZ"), (now + datetime.timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    scope = f"{stamp[:8]}/{REGION}/s3/aws4_request"
    given = {
        "key": v.key,
        "x-amz-algorithm": "AWS4-HMAC-SHA256",
        "x-amz-credential": f"{a.access_key}/{scope}",
        "x-amz-date": stamp,
        **(fields or {}),
    }
    conditions = [{"bucket": v.bucket}, *({name: text} for name, text in given.items())]
    policy = base64.b64encode(json.dumps({"expiration": until, "conditions": conditions}).encode()).decode()
    given |= {"policy": policy, "x-amz-signature": a.signature(scope, policy)}
    kind, body = parts(*given.items())
    return a.send("POST", f"/{v.bucket}{'?' if query else ''}{query}", kind | headers, body)


def archive(v: Victim) -> bytes:
    """Return a tar archive with an entry that names the victim's version, as MinIO's `snowball` upload reads it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo(v.key)
        entry.size, entry.mtime = len(OTHER_CONTENT), 1
        entry.pax_headers = {"minio.versionId": v.version, "minio.metadata.x-amz-meta-by": "attacker"}
        tar.addfile(entry, io.BytesIO(OTHER_CONTENT))
    return packed.getvalue()


def in_parts(a: Key, v: Victim, query: str, start: Mapping[str, str], end: Mapping[str, str]) -> Reply:
    """Upload in parts, with these headers at the start and at the end."""
    begun = a.ask("POST", v.path, "&".join(filter(None, ["uploads=", query])), start)
    if not begun.done:
        return begun
    upload = begun.body.partition(b"<UploadId>")[2].partition(b"<")[0].decode()
    part = a.ask("PUT", v.path, f"partNumber=1&uploadId={upload}", body=OTHER_CONTENT)
    listed = f"<Part><PartNumber>1</PartNumber><ETag>{part.headers.get('etag', '')}</ETag></Part>"
    body = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
    return a.ask("POST", v.path, "&".join(filter(None, [f"uploadId={upload}", query])), end, body)


def copied_part(a: Key, v: Victim) -> Reply:
    """Copy another key's object into a part, through the presigned URL of a part, as MLflow issues them."""
    path = f"/{v.bucket}/{v.folder}/mine"
    upload = a.ask("POST", path, "uploads=").body.partition(b"<UploadId>")[2].partition(b"<")[0].decode()
    reply = a.ask("PUT", path, f"partNumber=1&uploadId={upload}", {"x-amz-copy-source": v.path}, presigned=True)
    a.ask("DELETE", path, f"uploadId={upload}")
    # If a gateway turned it into an ordinary part, it contains nothing of the other object.
    return reply if b"CopyPartResult" in reply.body else reply._replace(status=max(reply.status, 403))


def batch(a: Key, v: Victim, version: str, **headers: str) -> Reply:
    body = f"<Delete><Object><Key>{v.key}</Key><VersionId>{version}</VersionId></Object></Delete>".encode()
    md5 = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
    return a.ask("POST", f"/{v.bucket}", "delete=", {"content-md5": md5, **headers}, body)


def setting(name: str, body: str = "", method: str = "PUT") -> Callable[[Key, Victim], Reply]:
    """Return the attack that changes a setting of the bucket."""

    def attack(a: Key, v: Victim) -> Reply:
        sent = body.replace("BUCKET", v.bucket).encode()
        md5 = base64.b64encode(hashlib.md5(sent, usedforsecurity=False).digest()).decode()
        return a.ask(method, f"/{v.bucket}", f"{name}=", {"content-md5": md5}, sent)

    return attack


def asked(method: str, query: str = "", body: bytes = b"", presigned: bool = False, **headers: str) -> Any:
    """Return the attack that is one request for the victim's object; VERSION in its query is the victim's."""
    given = {name.replace("_", "-"): text for name, text in headers.items()}

    def attack(a: Key, v: Victim) -> Reply:
        sent = {name: text.replace("SELF", v.path).replace("VERSION", v.version) for name, text in given.items()}
        if body:
            sent["content-md5"] = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        return a.ask(method, v.path, query.replace("VERSION", v.version), sent, body, presigned=presigned)

    return attack


def admin(method: str, call: str, body: bytes = b"") -> Callable[[Key, Victim], Reply]:
    return lambda a, v: a.ask(method, f"/minio/admin/v3/{call.partition('?')[0]}", call.partition("?")[2], body=body)


def temporary(a: Key, days: int = 7) -> Reply:
    """Request a temporary key, which has the same permissions and lasts up to a week."""
    body = f"Action=AssumeRole&Version=2011-06-15&DurationSeconds={days * 86400}".encode()
    return a.ask("POST", "/", headers=FORM, body=body, service="sts")


def assumed(a: Key, reply: Reply) -> Key:
    """Return the temporary key from the response."""

    def field(name: str) -> str:
        return reply.body.decode().partition(f"<{name}>")[2].partition("<")[0]

    made = Key(a.endpoint.geturl(), field("AccessKeyId"), field("SecretAccessKey"), field("SessionToken"))
    made.context = a.context
    return made


VERSIONED = "<VersioningConfiguration><Status>Suspended</Status></VersioningConfiguration>"
GONE = (
    "<LifecycleConfiguration><Rule><ID>x</ID><Status>Enabled</Status><Filter><Prefix></Prefix></Filter>"
    "<NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays></NoncurrentVersionExpiration>"
    "</Rule></LifecycleConfiguration>"
)
OPEN = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Principal": "*", "Action": ["s3:*"], "Resource": ["arn:aws:s3:::BUCKET/*"]},
        ],
    }
)
REPLICATE = (
    "<ReplicationConfiguration><Role></Role><Rule><Status>Enabled</Status><Priority>1</Priority><Filter/>"
    "<DeleteReplication><Status>Enabled</Status></DeleteReplication><DeleteMarkerReplication><Status>Enabled</Status>"
    "</DeleteMarkerReplication><Destination><Bucket>arn:minio:replication::x:BUCKET</Bucket></Destination></Rule>"
    "</ReplicationConfiguration>"
)
NOTIFY = (
    "<NotificationConfiguration><QueueConfiguration><Queue>arn:minio:sqs::x:webhook</Queue>"
    "<Event>s3:ObjectCreated:*</Event></QueueConfiguration></NotificationConfiguration>"
)
TAGS = b"<Tagging><TagSet><Tag><Key>by</Key><Value>attacker</Value></Tag></TagSet></Tagging>"
HOLD = b"<LegalHold><Status>ON</Status></LegalHold>"
RETAIN = f"<Retention><Mode>GOVERNANCE</Mode><RetainUntilDate>{LATER}</RetainUntilDate></Retention>".encode()
LOCK = (
    "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>"
    "<Mode>COMPLIANCE</Mode><Days>36500</Days></DefaultRetention></Rule></ObjectLockConfiguration>"
)
ENCRYPT = (
    "<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>AES256</SSEAlgorithm>"
    "</ApplyServerSideEncryptionByDefault></Rule></ServerSideEncryptionConfiguration>"
)
UNTAR = {"x-amz-meta-snowball-auto-extract": "true"}
REPLICA = {"x_amz_replication_status": "REPLICA", "x_minio_source_replication_request": "true"}
ANEW = {"x_amz_metadata_directive": "REPLACE", "x_amz_meta_by": "attacker"}
FORCE = {"x_minio_force_delete": "true"}
BYPASS = {"x_amz_bypass_governance_retention": "true"}

# Refused by the store itself, with or without a gateway.
ATTACKS: dict[str, Callable[[Key, Victim], Reply]] = {
    # Permanent deletion.
    "delete a version": asked("DELETE", "versionId=VERSION"),
    "delete a version, its name encoded": asked("DELETE", "%76ersion%49d=VERSION"),
    "delete a version, presigned": asked("DELETE", "versionId=VERSION", presigned=True),
    "delete a version, bypassing": asked("DELETE", "versionId=VERSION", **BYPASS),
    "delete a version, as a replica": asked("DELETE", "versionId=VERSION", **REPLICA),
    "delete a version, as a mark": asked("DELETE", "versionId=VERSION", x_minio_source_deletemarker="true"),
    "delete a version, out of the scratch folder": lambda a, v: a.ask(
        "DELETE", f"/{v.bucket}/scratch/%2e%2e/{v.key}", f"versionId={v.version}"
    ),
    "delete the null version": asked("DELETE", "versionId=null"),
    "delete a version in a batch": lambda a, v: batch(a, v, v.version),
    "delete a version in a batch, bypassing": lambda a, v: batch(
        a, v, v.version, **{"x-amz-bypass-governance-retention": "true"}
    ),
    "force a folder away": lambda a, v: a.ask(
        "DELETE", f"/{v.bucket}/{v.folder}/", headers={"x-minio-force-delete": "true"}
    ),
    "force an object away": asked("DELETE", **FORCE),
    "force an object away, presigned": asked("DELETE", presigned=True, **FORCE),
    "force an object away, unusually": asked("DELETE", x_minio_force_delete="T"),
    "force the bucket away": lambda a, v: a.ask("DELETE", f"/{v.bucket}", headers={"x-minio-force-delete": "true"}),
    "delete the bucket": lambda a, v: a.ask("DELETE", f"/{v.bucket}"),
    # Overwriting.
    "put a version": asked("PUT", "versionId=VERSION", OTHER_CONTENT),
    "put a version, its name encoded": asked("PUT", "%76ersion%49d=VERSION", OTHER_CONTENT),
    "put a version, spaced": asked("PUT", "versionId=%20VERSION", OTHER_CONTENT),
    "put a version, presigned": asked("PUT", "versionId=VERSION", OTHER_CONTENT, presigned=True),
    "put a version, as a replica": asked("PUT", "versionId=VERSION", OTHER_CONTENT, **REPLICA),
    "put the null version": asked("PUT", "versionId=null", OTHER_CONTENT),
    "put a version in parts": lambda a, v: in_parts(a, v, f"versionId={v.version}", {}, {}),
    "put a version with a form": lambda a, v: form(a, v, f"versionId={v.version}"),
    "put what replicas are made of": asked("PUT", "", OTHER_CONTENT, x_amz_replication_status="REPLICA"),
    "unpack over a version, presigned for another name": lambda a, v: a.ask(
        "PUT", f"/{v.bucket}/{v.folder}/mine", "", UNTAR, archive(v), presigned=True
    ),
    "append": asked("PUT", "", OTHER_CONTENT, x_amz_write_offset_bytes="0"),
    # Metadata.
    "tag a version": asked("PUT", "tagging=&versionId=VERSION", TAGS),
    "tag the latest": asked("PUT", "tagging=", TAGS),
    "take a version's tags": asked("DELETE", "tagging=&versionId=VERSION"),
    "hold": asked("PUT", "legal-hold=&versionId=VERSION", HOLD),
    "retain": asked("PUT", "retention=&versionId=VERSION", RETAIN),
    "put what is held": asked("PUT", "", OTHER_CONTENT, x_amz_object_lock_legal_hold="ON"),
    "put what is retained": asked(
        "PUT",
        "",
        OTHER_CONTENT,
        x_amz_object_lock_mode="COMPLIANCE",
        x_amz_object_lock_retain_until_date="2099-01-01T00:00:00Z",
    ),
    "open to all": asked("PUT", "acl=", x_amz_acl="public-read-write"),
    "restore": asked("POST", "restore=", b"<RestoreRequest><Days>1</Days></RestoreRequest>"),
    # Uploads in progress.
    "list what is being uploaded": lambda a, v: a.ask("GET", f"/{v.bucket}", f"uploads=&prefix={quote(v.key)}"),
    "many names at once": lambda a, v: form(a, v, fields={"x-minio-fanout-list": json.dumps({"key": v.key})}),
    # Settings of the bucket.
    "keep no versions": setting("versioning", VERSIONED),
    "let versions go": setting("lifecycle", GONE),
    "let nothing go": setting("lifecycle", method="DELETE"),
    "open the bucket": setting("policy", OPEN),
    "close the bucket": setting("policy", method="DELETE"),
    "send it elsewhere": setting("replication", REPLICATE),
    "tell somebody": setting("notification", NOTIFY),
    "lock": setting("object-lock", LOCK),
    "encrypt": setting("encryption", ENCRYPT),
    "tag the bucket": setting("tagging", TAGS.decode()),
    "replicate again": setting("replication-reset"),
    "make a bucket": lambda a, v: a.ask("PUT", f"/attack-{uuid.uuid4()}"),
    # The server.
    "see the server": admin("GET", "info"),
    "make a user": admin("PUT", "add-user?accessKey=attacker", b"x"),
    "make a policy": admin("PUT", "add-canned-policy?name=attacker", b"{}"),
    "take a policy": lambda a, v: admin(
        "PUT", f"set-user-or-group-policy?policyName=readwrite&userOrGroup={a.access_key}&isGroup=false"
    )(a, v),
    "import settings": admin("PUT", "import-bucket-metadata", b"PK\x05\x06" + bytes(18)),
    "set a quota": lambda a, v: admin("PUT", f"set-bucket-quota?bucket={v.bucket}", b'{"quota":1,"quotatype":"hard"}')(
        a, v
    ),
    "set an address": admin("PUT", "set-config-kv", b"x"),
    "revoke others' keys": admin("POST", "revoke-tokens/builtin?user=somebody&fullRevoke=true"),
    "stop it": admin("POST", "service?action=stop&type=2"),
}

# Refused by the gateway: MinIO's policies cannot detect them, or are bypassed by them. Clients on the store's own host,
# which do not go through the gateway, are not stopped.
AT_THE_GATEWAY: dict[str, Callable[[Key, Victim], Reply]] = {
    # A header named like the condition `s3:versionid` overrides the requested version in the policy.
    "put a version, hidden by a header": asked("PUT", "versionId=VERSION", OTHER_CONTENT, versionid=""),
    "put a version, hidden by a header, presigned": asked(
        "PUT", "versionId=VERSION", OTHER_CONTENT, presigned=True, versionid=""
    ),
    "put a version, hidden by a second name": asked("PUT", "Versionid=&versionId=VERSION", OTHER_CONTENT),
    "put a version, hidden by a second name, encoded": asked("PUT", "%56ersionid=&versionId=VERSION", OTHER_CONTENT),
    # To the policy, a copy onto a version looks like a copy from it, which is how users restore it.
    "copy a version onto itself": asked("PUT", "versionId=VERSION", x_amz_copy_source="SELF?versionId=VERSION", **ANEW),
    "copy the latest onto a version": asked("PUT", "versionId=VERSION", x_amz_copy_source="SELF", **ANEW),
    "copy the latest onto a version, its name encoded": asked(
        "PUT", "%76ersion%49d=VERSION", x_amz_copy_source="SELF", **ANEW
    ),
    "put a version that is no copy": asked("PUT", "versionId=VERSION&x-amz-copy-source=x", OTHER_CONTENT),
    "put a version in parts, hidden": lambda a, v: in_parts(
        a, v, f"Versionid=&versionId={v.version}", {"versionid": ""}, {}
    ),
    "put a version with a form, hidden": lambda a, v: form(a, v, f"versionId={v.version}", versionid=""),
    # An archive names the version that each entry overwrites, and its time.
    "unpack over a version": lambda a, v: a.ask("PUT", f"/{v.bucket}/{v.folder}/x.tar", "", UNTAR, archive(v)),
    "unpack over a version, below a prefix": lambda a, v: a.ask(
        "PUT",
        f"/{v.bucket}/x.tar",
        "",
        {**UNTAR, "x-amz-meta-minio-snowball-prefix": v.folder},
        archive(v._replace(key=v.key.removeprefix(f"{v.folder}/"))),
    ),
    # Forged times: the victim's version then looks long expired, or never becomes the latest again.
    "put it back then": asked("PUT", "", OTHER_CONTENT, x_minio_source_mtime=LONG_AGO),
    "put it last for ever": asked("PUT", "", OTHER_CONTENT, x_minio_source_mtime=LATER),
    "put it last for ever, presigned": asked("PUT", "", OTHER_CONTENT, presigned=True, x_minio_source_mtime=LATER),
    "put it last for ever, copied": asked("PUT", "", x_amz_copy_source="SELF", x_minio_source_mtime=LATER, **ANEW),
    "put it last for ever, in parts": lambda a, v: in_parts(a, v, "", {}, {"x-minio-source-mtime": LATER}),
    "put it last for ever, with a form": lambda a, v: form(a, v, **{"x-minio-source-mtime": LATER}),
    "delete it for ever": asked("DELETE", "", x_minio_source_mtime=LATER),
    # Additional parameters on a URL that somebody else signed.
    "read another's over a signed address": lambda a, v: a.ask(
        "PUT", f"/{v.bucket}/{v.folder}/mine", "", {"x-amz-copy-source": v.path}, presigned=True
    ),
    "read another's over a signed address, with a login of nothing": lambda a, v: a.ask(
        "PUT", f"/{v.bucket}/{v.folder}/mine", "", {"x-amz-copy-source": v.path, "authorization": "x"}, presigned=True
    ),
    "read another's over a signed address, in parts": lambda a, v: copied_part(a, v),
    "a key for a week": lambda a, v: temporary(a),
    "a key for a week, asked for anywhere": lambda a, v: a.ask(
        "POST", f"/{v.bucket}", "", FORM, b"Action=AssumeRole&Version=2011-06-15", service="sts"
    ),
}


# Permitted requests: they add or hide a version, and leave existing ones unchanged.
ALLOWED: dict[str, Callable[[Key, Victim], Reply]] = {
    "put": asked("PUT", "", OTHER_CONTENT),
    "put in parts": lambda a, v: in_parts(a, v, "", {}, {}),
    "put an archive that is looked into": asked("PUT", "", OTHER_CONTENT, x_minio_extract="true"),
    "copy onto itself": asked("PUT", "", x_amz_copy_source="SELF", **ANEW),
    "bring an old version back": asked("PUT", "", x_amz_copy_source="SELF?versionId=VERSION"),
    "delete": asked("DELETE"),
}


class Owner(Key):
    """The administrator who stored the victim."""

    def victim(self, bucket: str) -> Victim:
        """Store an object twice."""
        folder = f"victim-{uuid.uuid4()}"
        path, version = f"/{bucket}/{folder}/deep/object", ""
        for content in (b"first", b"second"):
            put = self.ask("PUT", path, headers={"x-amz-tagging": "by=owner", "x-amz-meta-by": "owner"}, body=content)
            version = version or put.headers["x-amz-version-id"]
        return Victim(bucket, folder, f"{folder}/deep/object", version)

    def versions(self, victim: Victim) -> list[tuple[str, str]]:
        """Return key and version of everything in the victim's folder, including delete markers."""
        listed = self.ask("GET", f"/{victim.bucket}", f"versions=&prefix={victim.folder}/").body.decode()
        entries = re.findall(r"<(?:Version|DeleteMarker)>.*?<Key>(.*?)</Key>.*?<VersionId>(.*?)</VersionId>", listed)
        return [(key, version) for key, version in entries]

    def state(self, victim: Victim) -> dict[str, Any]:
        """Return the victim's state: the bucket's settings, and versions with hash, time, tags and metadata."""
        seen: dict[str, Any] = {}
        for name in ("versioning", "lifecycle", "policy", "replication", "notification", "encryption", "tagging"):
            found = self.ask("GET", f"/{victim.bucket}", f"{name}=")
            seen[name] = found.body if found.status == 200 else found.status
        for key, version in self.versions(victim):
            if key == victim.key:
                got = self.ask("GET", victim.path, f"versionId={version}")
                told = {name: got.headers.get(name) for name in ("etag", "last-modified", "x-amz-meta-by")}
                told["tags"] = self.ask("GET", victim.path, f"tagging=&versionId={version}").body.decode()
                told["held"] = str(self.ask("GET", victim.path, f"legal-hold=&versionId={version}").status)
                seen[version] = {"sha256": hashlib.sha256(got.body).hexdigest(), **told}
        return seen

    def forget(self, victim: Victim) -> None:
        """Permanently remove the victim and what the attack added."""
        for key, version in self.versions(victim):
            self.ask("DELETE", f"/{victim.bucket}/{key}", f"versionId={version}")


def outcome(owner: Owner, attacker: Key, bucket: str, attack: Callable[[Key, Victim], Reply]) -> tuple[Reply, bool]:
    """Try an attack; return the response, and whether the victim is unchanged."""
    victim = owner.victim(bucket)
    try:
        before = owner.state(victim)
        assert victim.version in before
        reply = attack(attacker, victim)
        after = owner.state(victim)
        return reply, all(after.get(name) == told for name, told in before.items())
    finally:
        owner.forget(victim)


def main() -> int:
    """Try the requested attacks; print those that worked, as JSON."""
    asked = json.load(sys.stdin)
    owner = Owner(asked["endpoint"], *asked["owner"], ca=asked.get("ca"))
    tried, worked = 0, []
    for holder, secret in asked["keys"].items():
        attacker = Key(asked["endpoint"], holder, secret, ca=asked.get("ca"))
        for bucket in asked["buckets"]:
            for name, attack in (ATTACKS | (AT_THE_GATEWAY if asked.get("gateway") else {})).items():
                reply, whole = outcome(owner, attacker, bucket, attack)
                tried += 1
                if reply.done or not whole:
                    worked.append(f"{holder} in {bucket}: {name}: {reply.status}, {'kept' if whole else 'lost'}")
    print(json.dumps({"tried": tried, "worked": worked}))
    return min(len(worked), 1)


if __name__ == "__main__":
    sys.exit(main())
