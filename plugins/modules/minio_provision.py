#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Create MinIO buckets, and one key with a least-privilege policy per consumer, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: minio_provision
short_description: Create MinIO buckets, and one key with a least-privilege policy per client
description:
  - Reads what the server has and sends only what differs, so the next run finishes one that was killed.
  - Proves each client's key by a signed request to each of its buckets.
  - Removes keys that an earlier call created and that no client has any longer. Never removes buckets.
  - In a bucket with versioning, no client can destroy or overwrite an object. Old versions expire after
    O(buckets[].old_days). Versioning of a bucket cannot be turned off.
  - Revokes temporary credentials of a key that is removed or gets another secret.
options:
  root_user: {type: str, required: true, description: Root user of the server.}
  root_password: {type: str, required: true, description: Password of the root user.}
  buckets: {required: true}
  scratch:
    type: list
    elements: str
    default: []
    description: Prefixes for temporary objects in every bucket. Clients that write there may delete for good, and
      objects expire after a day.
extends_documentation_fragment:
  - metalworks.platform.s3_access
  - metalworks.platform.s3_access.buckets
author: Metalworks (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Create buckets and keys
  metalworks.platform.minio_provision:
    endpoint: https://store.example.org:9000
    region: us-east-1
    root_user: root
    root_password: "{{ vault_object_store_root_password }}"
    buckets: [{name: data, versioning: true, old_days: 90}]
    consumers:
      - {name: ada, access_key: ada, secret_key: "{{ vault_object_store_secret_keys.ada }}", buckets: [data]}
"""

RETURN = r"""
actions: {type: list, elements: str, returned: always, description: What was (or in check mode would be) done.}
"""

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Sequence
from typing import Any

from ..module_utils.host_module import HostModule
from ..module_utils.s3_client import BUCKETS, CONSUMERS, TEXT, Store, StoreError, UnreachableError, expiry_wanted

ADMIN = "/minio/admin/v3"
FOR_GOOD = ["s3:DeleteObjectVersion"]
"""With versioning, deleting only hides an object. MinIO lets a key that may delete also delete a version permanently,
unless a policy explicitly denies that."""
NEVER = ["s3:BypassGovernanceRetention"]
OVER_A_VERSION = {"Null": {"s3:x-amz-copy-source": [True]}, "StringLike": {"s3:versionid": ["?*"]}}
"""MinIO overwrites the version that a PUT names, as in replication. A copy also names one, to restore an old version,
and a policy cannot tell a copy's source from its target. A client can also hide the version from the condition by
sending a header with the condition's name. So the gateway refuses these requests too; the condition is for stores
without a gateway."""
LOCKED = b"<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled></ObjectLockConfiguration>"
"""Object lock without a retention. With it, MinIO refuses `x-minio-force-delete`, which deletes an object or a folder
with all versions for any key that may hide them, and which no policy can tell apart from hiding."""
POLICY_PREFIX = "metalworks-"
"""A policy of this module is named after the prefix and its access key, so that keys without a consumer are found."""

BUCKET_ACTIONS = ["s3:GetBucketLocation", "s3:GetBucketVersioning", "s3:ListBucket", "s3:ListBucketVersions"]
READ_ACTIONS = ["s3:GetObject", "s3:GetObjectVersion", "s3:GetObjectTagging"]
WRITE_ACTIONS = [
    "s3:AbortMultipartUpload",
    "s3:DeleteObject",
    "s3:ListMultipartUploadParts",
    "s3:PutObject",
]
"""No tagging, which changes an existing version of anyone. No listing of uploads in progress: a key that knows an
upload's id may abort it."""
NO_KEYS_OF_THEIR_OWN = ["admin:CreateServiceAccount", "admin:UpdateServiceAccount"]
"""A key that another key created would survive the rotation of that key's secret."""


def policy(buckets: list[str], access: str, reads: Sequence[str] = (), scratch: Sequence[str] = ()) -> dict[str, Any]:
    """Return a policy that lets a key use `buckets`, read `reads`, and nothing else.

    The key can delete permanently only below the prefixes of `scratch`, and can overwrite no version.
    """
    statements: list[dict[str, Any]] = []
    for names, write in ((buckets, access == "readwrite"), (reads, False)):
        if not names:
            continue
        on_objects = [*READ_ACTIONS, *(WRITE_ACTIONS if write else [])]
        objects = [f"arn:aws:s3:::{name}/*" for name in names]
        statements += [
            {"Effect": "Allow", "Action": BUCKET_ACTIONS, "Resource": [f"arn:aws:s3:::{name}" for name in names]},
            {"Effect": "Allow", "Action": on_objects, "Resource": objects},
            {"Effect": "Deny", "Action": NEVER, "Resource": objects},
        ]
        kept = [f"arn:aws:s3:::{name}/{prefix}*" for name in names for prefix in scratch] if write else []
        statements.append(
            {"Effect": "Deny", "Action": FOR_GOOD, **({"NotResource": kept} if kept else {"Resource": objects})}
        )
        if write:
            over = {"Effect": "Deny", "Action": ["s3:PutObject"], "Resource": objects, "Condition": OVER_A_VERSION}
            statements.append(over)
    return {
        "Version": "2012-10-17",
        "Statement": [*statements, {"Effect": "Deny", "Action": NO_KEYS_OF_THEIR_OWN}],
    }


def normal(document: dict[str, Any]) -> list[str]:
    """Return a policy's statements in a form that does not depend on the server's order."""
    return sorted(
        json.dumps(
            {name: sorted(part) if isinstance(part, list) else part for name, part in one.items()}, sort_keys=True
        )
        for one in document.get("Statement", [])
    )


def sealed(secret: str, data: bytes, salt: bytes, nonce: bytes) -> bytes:
    """Encrypt a body for MinIO's admin API: a single final package of its format, key by PBKDF2, AES-256-GCM.

    The server accepts this besides Argon2, which the standard library does not have.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    cipher = AESGCM(hashlib.pbkdf2_hmac("sha256", secret.encode(), salt, 8192, 32))
    header = cipher.encrypt(nonce + (0).to_bytes(4, "little"), b"", b"")
    package: bytes = cipher.encrypt(nonce + (1).to_bytes(4, "little"), data, b"\x80" + header)
    return salt + b"\x02" + nonce + package


class Provision:
    """Compare the server with the wanted state and carry out the differences."""

    def __init__(self, wants: dict[str, Any], *, dry: bool) -> None:
        """Keep the wanted state; with `dry`, only record what would be done."""
        self.wants, self.dry, self.actions = wants, dry, list[str]()
        self.root = self.store(wants["root_user"], wants["root_password"])

    def store(self, access_key: str, secret_key: str) -> Store:
        """Return a client that uses this key."""
        return Store(self.wants["endpoint"], self.wants["region"], access_key, secret_key)

    def send(self, action: str, method: str, path: str, query: dict[str, str] | None = None, body: bytes = b"") -> None:
        """Record an action and send its request."""
        self.actions.append(action)
        if not self.dry:
            self.root.ask(method, path, query, body).expect(action)

    def bucket(self, name: str, versioning: bool, expire_days: int, old_days: int) -> None:
        """Create the bucket and set its versioning and expiry."""
        asked = self.root.ask("GET", f"/{name}", {"versioning": ""})
        if asked.code == "NoSuchBucket":
            self.send(f"create bucket {name}", "PUT", f"/{name}")
            status = ""
        else:
            found = re.search(rb"<Status>(\w+)</Status>", asked.expect(f"ask for bucket {name}").body)
            status = found.group(1).decode() if found else ""
        if versioning != (status == "Enabled"):
            state = "Enabled" if versioning else "Suspended"
            body = f"<VersioningConfiguration><Status>{state}</Status></VersioningConfiguration>"
            self.send(f"versioning of {name}: {state}", "PUT", f"/{name}", {"versioning": ""}, body.encode())
        if versioning:
            self.lock(name)
        rules = expiry_wanted(self.root, name, expire_days, self.wants["scratch"], old_days)
        if rules is not None:
            self.send(f"expiry in {name}", "PUT" if rules else "DELETE", f"/{name}", {"lifecycle": ""}, rules)

    def lock(self, name: str) -> None:
        """Turn on object lock. MinIO's S3 API can do that for new buckets only, its metadata import for all."""
        asked = self.root.ask("GET", f"/{name}", {"object-lock": ""})
        if asked.code not in ("NoSuchBucket", "ObjectLockConfigurationNotFoundError"):
            asked.expect(f"ask for the lock of {name}")
            return
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as file:
            file.writestr(f"{name}/object-lock.xml", LOCKED)
        self.send(f"lock of {name}", "PUT", f"{ADMIN}/import-bucket-metadata", None, packed.getvalue())
        if not self.dry:  # it answers 200 even if it failed
            self.root.ask("GET", f"/{name}", {"object-lock": ""}).expect(f"lock of {name}")

    def key_works(self, consumer: dict[str, Any]) -> bool:
        """Tell whether the server accepts the key with this secret, whatever its permissions."""
        store = self.store(consumer["access_key"], consumer["secret_key"])
        asked = store.ask("GET", f"/{consumer['buckets'][0]}", {"list-type": "2", "max-keys": "1"})
        return asked.ok or asked.code in ("AccessDenied", "NoSuchBucket")

    def consumer(self, consumer: dict[str, Any], policies: dict[str, Any]) -> None:
        """Create or correct the consumer's policy and key, and attach the policy to the key."""
        who, key = consumer["name"], consumer["access_key"]
        wanted = policy(consumer["buckets"], consumer["access"], consumer["reads"], self.wants["scratch"])
        name = f"{POLICY_PREFIX}{key}"
        if normal(policies.get(name, {})) != normal(wanted):
            body = json.dumps(wanted).encode()
            self.send(f"policy of {who}", "PUT", f"{ADMIN}/add-canned-policy", {"name": name}, body)
        asked = self.root.ask("GET", f"{ADMIN}/user-info", {"accessKey": key})
        known = {} if asked.code == "XMinioAdminNoSuchUser" else json.loads(asked.expect(f"ask for key of {who}").body)
        works = known.get("status") == "enabled" and self.key_works(consumer)
        if known and not works:
            # Removing the key also removes what was created with its old secret.
            self.send(f"remove old key of {who}", "DELETE", f"{ADMIN}/remove-user", {"accessKey": key})
            known = {}
        if not works:
            # MinIO keeps a removed key's temporary keys. Revoke them after the removal, so that no new ones are made,
            # and before the key exists again, so that the next run repeats this if this one is killed.
            self.revoke(who, key)
            user = json.dumps({"secretKey": consumer["secret_key"], "status": "enabled"}).encode()
            body = b"" if self.dry else sealed(self.wants["root_password"], user, os.urandom(32), os.urandom(8))
            self.send(f"key of {who}", "PUT", f"{ADMIN}/add-user", {"accessKey": key}, body)
        if known.get("policyName") != name:
            query = {"policyName": name, "userOrGroup": key, "isGroup": "false"}
            self.send(f"policy of {who} on its key", "PUT", f"{ADMIN}/set-user-or-group-policy", query)

    def revoke(self, who: str, key: str) -> None:
        """Revoke the temporary keys that a key obtained (AssumeRole, the console)."""
        self.send(
            f"temporary keys of {who}", "POST", f"{ADMIN}/revoke-tokens/builtin", {"user": key, "fullRevoke": "true"}
        )

    def retire(self, policies: dict[str, Any]) -> None:
        """Remove keys of earlier calls that have no consumer any longer."""
        owned = {consumer["access_key"] for consumer in self.wants["consumers"]}
        for name in sorted(policies):
            key = name.removeprefix(POLICY_PREFIX)
            if not name.startswith(POLICY_PREFIX) or key in owned:
                continue
            if self.root.ask("GET", f"{ADMIN}/user-info", {"accessKey": key}).code != "XMinioAdminNoSuchUser":
                self.send(f"remove key {key}", "DELETE", f"{ADMIN}/remove-user", {"accessKey": key})
            self.revoke(key, key)
            self.send(f"remove policy {name}", "DELETE", f"{ADMIN}/remove-canned-policy", {"name": name})

    def check_keys(self) -> None:
        """List every consumer's buckets with its own key; raise StoreError if that is refused."""
        for consumer in self.wants["consumers"]:
            store = self.store(consumer["access_key"], consumer["secret_key"])
            for bucket in [*consumer["buckets"], *consumer["reads"]]:
                asked = store.ask("GET", f"/{bucket}", {"list-type": "2", "max-keys": "1"})
                asked.expect(f"list {bucket} with the key of {consumer['name']}")

    def run(self) -> None:
        """Bring the server to the wanted state, and verify every key."""
        for bucket in self.wants["buckets"]:
            self.bucket(bucket["name"], bucket["versioning"], bucket["expire_days"], bucket["old_days"])
        listed = self.root.ask("GET", f"{ADMIN}/list-canned-policies").expect("list policies")
        policies: dict[str, Any] = json.loads(listed.body)
        for consumer in self.wants["consumers"]:
            self.consumer(consumer, policies)
        self.retire(policies)
        if not self.dry:
            self.check_keys()


def wrong(wants: dict[str, Any]) -> str:
    """Return what is wrong with the parameters, or an empty string."""
    keys = [consumer["access_key"] for consumer in wants["consumers"]]
    buckets = {bucket["name"] for bucket in wants["buckets"]}
    for bucket in wants["buckets"]:
        for days in ("expire_days", "old_days"):
            if bucket[days] < 0:
                return f"bucket {bucket['name']}: {days} must be a number of days, or 0 for never"
    if doubled := sorted({key for key in keys if keys.count(key) > 1}):
        return f"several consumers share an access key: {', '.join(doubled)}"
    if wants["root_user"] in keys:
        return f"a consumer has the access key {wants['root_user']!r}, which is the server's root user"
    for consumer in wants["consumers"]:
        if not consumer["buckets"]:
            return f"consumer {consumer['name']} has no bucket"
        if missing := sorted({*consumer["buckets"], *consumer["reads"]} - buckets):
            return f"consumer {consumer['name']} uses buckets that are not listed: {', '.join(missing)}"
        if len(consumer["access_key"]) < 3 or len(consumer["secret_key"]) < 8:
            return f"consumer {consumer['name']}: an access key needs at least 3 characters, a secret key at least 8"
    return ""


def main() -> None:
    """Read the arguments and provision."""
    module = HostModule(
        argument_spec={
            "endpoint": TEXT,
            "region": TEXT,
            "root_user": TEXT,
            "root_password": {**TEXT, "no_log": True},
            "buckets": {**BUCKETS, "required": True},
            "scratch": {"type": "list", "elements": "str", "default": []},
            "consumers": CONSUMERS,
        },
        supports_check_mode=True,
    )
    if problem := wrong(module.params):
        module.fail_json(msg=problem)
    call = Provision(module.params, dry=module.check_mode)
    try:
        call.run()
    except StoreError as error:
        # In check mode on a clean host, there is no server yet to compare with.
        if not (module.check_mode and isinstance(error, UnreachableError)):
            module.fail_json(msg=str(error), actions=call.actions)
        call.actions.append(f"everything: {error}")
    module.exit_json(changed=bool(call.actions), actions=call.actions)


if __name__ == "__main__":
    main()
