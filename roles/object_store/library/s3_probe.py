#!/usr/bin/python
"""Prove that keys work on their buckets of an S3 store that somebody else runs."""

from __future__ import annotations

import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.minio_s3 import Store, StoreError

DOCUMENTATION = """
module: s3_probe
short_description: Every consumer's key works on its buckets
description:
  - Puts, reads and deletes a small object per consumer and bucket, as the consumer; a read-only key lists.
  - Leaves nothing behind and changes nothing, so it never reports a change. In check mode it only lists.
options:
  endpoint: {type: str, required: true, description: URL of the store.}
  region: {type: str, required: true, description: Region that requests are signed for.}
  consumers: {type: list, elements: dict, required: true, description: As of minio_provision.}
"""

RETURN = """
proved: {type: list, returned: success, description: Consumer and bucket of every proof.}
"""


def prove(store: Store, who: str, bucket: str, *, write: bool) -> None:
    """List the bucket, and write, read and delete an object in it; raise StoreError at the first refusal."""
    store.ask("GET", f"/{bucket}", {"list-type": "2", "max-keys": "1"}).expect(f"{who}: list {bucket}")
    if not write:
        return
    content, path = os.urandom(64), f"/{bucket}/.metalworks-probe-{os.urandom(8).hex()}"
    put = store.ask("PUT", path, body=content).expect(f"{who}: write in {bucket}")
    try:
        if store.ask("GET", path).expect(f"{who}: read in {bucket}").body != content:
            raise StoreError(f"{who}: {bucket} returned other bytes than were written")
    finally:
        # A bucket that keeps versions is left as found where the key may do that; hidden otherwise.
        version = put.headers.get("x-amz-version-id")
        if not (version and store.ask("DELETE", path, {"versionId": version}).ok):
            store.ask("DELETE", path).expect(f"{who}: delete in {bucket}")


def main() -> None:
    """Read the arguments and prove each key."""
    text = {"type": "str", "required": True}
    consumer: dict[str, Any] = {
        "name": text,
        "access_key": {**text, "no_log": False},
        "secret_key": {**text, "no_log": True},
        "buckets": {"type": "list", "elements": "str", "required": True},
        "access": {"type": "str", "default": "readwrite", "choices": ["readwrite", "readonly"]},
    }
    module = AnsibleModule(
        argument_spec={
            "endpoint": text,
            "region": text,
            "consumers": {"type": "list", "elements": "dict", "required": True, "options": consumer},
        },
        supports_check_mode=True,
    )
    wants, proved = module.params, []
    try:
        for one in wants["consumers"]:
            store = Store(wants["endpoint"], wants["region"], one["access_key"], one["secret_key"])
            for bucket in one["buckets"]:
                prove(store, one["name"], bucket, write=one["access"] == "readwrite" and not module.check_mode)
                proved.append(f"{one['name']} on {bucket}")
    except StoreError as error:
        module.fail_json(msg=str(error), proved=proved)
    module.exit_json(changed=False, proved=proved)


if __name__ == "__main__":
    main()
