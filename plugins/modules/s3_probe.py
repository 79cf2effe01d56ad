#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Check that keys work on their buckets of an S3 store that somebody else runs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: s3_probe
short_description: Check that keys work on the buckets of an S3 store that others run
description:
  - Writes, reads and deletes a small object with each key in each of its buckets; lists buckets that a key only reads.
    In check mode, only lists.
  - Sets the expiry of a bucket and of its old versions with a key that writes there, and warns where none may do that.
options:
  prefix: {type: str, default: "", description: Prefix of the objects that are written.}
  buckets: {default: []}
extends_documentation_fragment:
  - metalworks.platform.s3_access
  - metalworks.platform.s3_access.buckets
author: Metalworks (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Try the keys
  metalworks.platform.s3_probe:
    endpoint: https://s3.example.org
    region: eu-central-1
    buckets: [{name: data, expire_days: 30}]
    consumers:
      - {name: ada, access_key: ada, secret_key: "{{ vault_object_store_secret_keys.ada }}", buckets: [data]}
"""

RETURN = r"""
checked: {type: list, elements: str, returned: always, description: Each client and bucket that was checked.}
actions:
  type: list
  elements: str
  returned: success
  description: Expiry rules that were (or in check mode would be) set.
"""

import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.s3_client import BUCKETS, CONSUMERS, TEXT, Store, StoreError, expiry_wanted


def check(store: Store, who: str, bucket: str, *, write: bool, prefix: str = "") -> None:
    """List the bucket, then write, read and delete an object in it; raise StoreError at the first refusal."""
    store.ask("GET", f"/{bucket}", {"list-type": "2", "max-keys": "1"}).expect(f"{who}: list {bucket}")
    if not write:
        return
    content, path = os.urandom(64), f"/{bucket}/{prefix}.metalworks-probe-{os.urandom(8).hex()}"
    put = store.ask("PUT", path, body=content).expect(f"{who}: write in {bucket}")
    try:
        if store.ask("GET", path).expect(f"{who}: read in {bucket}").body != content:
            raise StoreError(f"{who}: {bucket} returned different bytes than were written")
    finally:
        # With versioning, delete the version itself where the key may; otherwise only hide it.
        version = put.headers.get("x-amz-version-id")
        if not (version and store.ask("DELETE", path, {"versionId": version}).ok):
            store.ask("DELETE", path).expect(f"{who}: delete in {bucket}")


def expire(store: Store, bucket: str, days: int, old_days: int = 0, *, dry: bool) -> bool:
    """Set a bucket's expiry; return whether it changed. Raises StoreError if the key may not set it."""
    rules = expiry_wanted(store, bucket, days, old_days=old_days)
    if rules is not None and not dry:
        method = "PUT" if rules else "DELETE"
        store.ask(method, f"/{bucket}", {"lifecycle": ""}, rules).expect(f"lifecycle of {bucket}")
    return rules is not None


def wanted(bucket: dict[str, Any]) -> str:
    """Describe a bucket's expiry; empty if it has none."""
    parts = {"objects": bucket["expire_days"], "old versions": bucket["old_days"]}
    return " and ".join(f"{what} after {days} days" for what, days in parts.items() if days)


def expire_all(wants: dict[str, Any], *, dry: bool) -> tuple[list[str], list[str]]:
    """Set the expiry of each bucket with the first key that may; return what changed, and what none may set."""
    actions, refused = list[str](), list[str]()
    for bucket in wants["buckets"]:
        name, what, error = bucket["name"], wanted(bucket), ""
        for one in wants["consumers"]:
            if name not in one["buckets"] or one["access"] != "readwrite":
                continue
            try:
                changed = expire(client(wants, one), name, bucket["expire_days"], bucket["old_days"], dry=dry)
            except StoreError as reason:
                error = error or str(reason)
                continue
            if changed:
                actions.append(f"expire in {name}: {what}" if what else f"keep objects of {name}")
            break
        else:
            if error and what:  # without expiry, there is no rule of ours to remove
                refused.append(f"{error}. Set a rule on the store for {name} that expires {what}")
    return actions, refused


def client(wants: dict[str, Any], consumer: dict[str, Any]) -> Store:
    """Return a client of the store with a consumer's key."""
    return Store(wants["endpoint"], wants["region"], consumer["access_key"], consumer["secret_key"])


def main() -> None:
    """Read the arguments and try each key."""
    module = AnsibleModule(
        argument_spec={
            "endpoint": TEXT,
            "region": TEXT,
            "prefix": {"type": "str", "default": ""},
            "buckets": {**BUCKETS, "default": []},
            "consumers": CONSUMERS,
        },
        supports_check_mode=True,
    )
    wants, checked = module.params, list[str]()
    try:
        for one in wants["consumers"]:
            store = client(wants, one)
            for bucket in one["buckets"]:
                write = one["access"] == "readwrite" and not module.check_mode
                check(store, one["name"], bucket, write=write, prefix=wants["prefix"])
                checked.append(f"{one['name']} on {bucket}")
            for bucket in one["reads"]:
                check(store, one["name"], bucket, write=False)
                checked.append(f"{one['name']} on {bucket}")
    except StoreError as error:
        module.fail_json(msg=str(error), checked=checked)
    actions, refused = expire_all(wants, dry=module.check_mode)
    for warning in refused:
        module.warn(warning)
    module.exit_json(changed=bool(actions), checked=checked, actions=actions)


if __name__ == "__main__":
    main()
