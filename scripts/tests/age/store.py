"""Access the object store as its root user. Runs on the store's host, in an environment that has botocore.

`scripts.tests.age` appends a call to this file and pipes both into that environment's Python, with MinIO's settings as
its environment variables.
"""

from __future__ import annotations

import importlib
import json
import os
from typing import Any


def root() -> Any:
    """Return a client with all permissions."""
    settings = importlib.import_module("botocore.config").Config(s3={"addressing_style": "path"})
    return (
        importlib.import_module("botocore.session")
        .get_session()
        .create_client(
            "s3",
            "us-east-1",
            endpoint_url="http://127.0.0.1:9000",
            aws_access_key_id=os.environ["MINIO_ROOT_USER"],
            aws_secret_access_key=os.environ["MINIO_ROOT_PASSWORD"],
            config=settings,
        )
    )


def versions(store: Any, bucket: str, prefix: str = "") -> list[list[str]]:
    """Return key, version and kind of all versions and delete markers in a bucket."""
    found = []
    for page in store.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=prefix):
        for kind in ("Versions", "DeleteMarkers"):
            found += [[one["Key"], one["VersionId"], kind] for one in page.get(kind, ())]
    return found


def everything(leave_out: list[str]) -> list[str]:
    """Return a line for each version and delete marker of each object."""
    store = root()
    buckets = [one["Name"] for one in store.list_buckets()["Buckets"] if one["Name"] not in leave_out]
    return [" ".join([bucket, *one]) for bucket in buckets for one in versions(store, bucket)]


def put_theirs(word: str) -> None:
    """Put a team's data into every bucket: old versions, and deleted objects that can still be restored."""
    store = root()
    for bucket in (one["Name"] for one in store.list_buckets()["Buckets"]):
        for key in (f"{word}/kept", f"{word}/deleted", f"metalworks-smoke-{word}/kept"):
            for text in (b"first", b"second"):
                store.put_object(Bucket=bucket, Key=key, Body=text)
        store.delete_object(Bucket=bucket, Key=f"{word}/deleted")


def remove(places: list[tuple[str, str]]) -> None:
    """Remove everything below these prefixes permanently. An empty bucket name means all buckets."""
    store = root()
    for bucket in (one["Name"] for one in store.list_buckets()["Buckets"]):
        for wanted, prefix in places:
            if wanted in (bucket, ""):
                for key, version, _ in versions(store, bucket, prefix):
                    store.delete_object(Bucket=bucket, Key=key, VersionId=version)


if __name__ == "__main__":
    print(json.dumps(everything([])))
