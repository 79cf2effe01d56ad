#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Prove that keys work on their buckets of an S3 store that somebody else runs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: s3_probe
short_description: Prove that keys work on the buckets of an S3 store that others run
description:
  - Writes, reads and deletes a small object with each key in each of its buckets; lists buckets that a key only reads.
    In check mode, only lists.
  - Sets the expiry of a bucket where a key that writes there is allowed to, and warns where it is not.
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
proved: {type: list, elements: str, returned: always, description: Each client and bucket that was proved.}
actions:
  type: list
  elements: str
  returned: success
  description: Expiry rules that were (or in check mode would be) set.
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.s3_client import BUCKETS, CONSUMERS, TEXT, Store, StoreError, expiry_wanted


def prove(store: Store, who: str, bucket: str, *, write: bool, prefix: str = "") -> None:
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


def expire(store: Store, bucket: str, days: int, *, dry: bool) -> bool:
    """Set a bucket's expiry; return whether it changed. Raises StoreError if the key may not set it."""
    rules = expiry_wanted(store, bucket, days)
    if rules is not None and not dry:
        method = "PUT" if rules else "DELETE"
        store.ask(method, f"/{bucket}", {"lifecycle": ""}, rules).expect(f"lifecycle of {bucket}")
    return rules is not None


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
    wants, proved, actions = module.params, list[str](), list[str]()
    expiry = {bucket["name"]: bucket["expire_days"] for bucket in wants["buckets"]}
    try:
        for one in wants["consumers"]:
            store = Store(wants["endpoint"], wants["region"], one["access_key"], one["secret_key"])
            for bucket in one["buckets"]:
                write = one["access"] == "readwrite" and not module.check_mode
                prove(store, one["name"], bucket, write=write, prefix=wants["prefix"])
                proved.append(f"{one['name']} on {bucket}")
            for bucket in one["reads"]:
                prove(store, one["name"], bucket, write=False)
                proved.append(f"{one['name']} on {bucket}")
            for bucket in one["buckets"] if one["access"] == "readwrite" else ():
                days = expiry.get(bucket, 0)
                try:
                    if expire(store, bucket, days, dry=module.check_mode):
                        actions.append(
                            f"expire objects of {bucket} after {days} days" if days else f"keep objects of {bucket}"
                        )
                except StoreError as error:  # without expiry, there is no rule of ours to remove
                    if days:
                        module.warn(
                            f"{error}. Set a rule on the store that expires objects of {bucket} after {days} days"
                        )
    except StoreError as error:
        module.fail_json(msg=str(error), proved=proved)
    module.exit_json(changed=bool(actions), proved=proved, actions=actions)


if __name__ == "__main__":
    main()
