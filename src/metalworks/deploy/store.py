"""The place of flows' code in the object store."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalworks.errors import CommandError

BUCKET = "METALWORKS_FLOW_CODE_BUCKET"


@dataclass(frozen=True)
class Upload:
    """One object, and whether the store has it already."""

    bucket: str
    key: str
    content: bytes
    there: bool

    @property
    def url(self) -> str:
        """Return its address."""
        return f"s3://{self.bucket}/{self.key}"

    @property
    def digest(self) -> str:
        """Return its content's SHA-256."""
        return hashlib.sha256(self.content).hexdigest()


class Store:
    """The bucket of flow code."""

    def __init__(self) -> None:
        """Open it as the user's environment says. Raises CommandError."""
        import botocore.session

        self.bucket = os.environ.get(BUCKET, "")
        if not self.bucket:
            raise CommandError(f"{BUCKET} is not set: log in on a workstation of the platform, or set it.")
        self.client = botocore.session.get_session().create_client("s3")

    def _ask(self, call: str, **arguments: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self.client, call)(Bucket=self.bucket, **arguments)
        except ClientError as error:
            if error.response["ResponseMetadata"].get("HTTPStatusCode") == 404 and call != "put_object":
                return None
            raise CommandError(f"s3://{self.bucket}/{arguments['Key']}: {error}") from error
        except BotoCoreError as error:
            store = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "AWS")
            raise CommandError(f"the object store {store} cannot be used: {error}") from error

    def plan(self, key: str, content: bytes) -> Upload:
        """Return an upload; of a commit that somebody has uploaded already, with what is there.

        Versions of Python and Git pack the same files differently: one archive per commit is enough.
        """
        head = self._ask("head_object", Key=key)
        if head is None:
            return Upload(self.bucket, key, content, there=False)
        if head["Metadata"].get("sha256") == hashlib.sha256(content).hexdigest():
            return Upload(self.bucket, key, content, there=True)
        there = self._ask("get_object", Key=key)
        known: bytes = there["Body"].read() if there else b""
        if _unpacked(known) == _unpacked(content):
            return Upload(self.bucket, key, known, there=True)
        raise CommandError(
            f"s3://{self.bucket}/{key} is there with another content, and deployments may use it. Two projects of one "
            "name? `name` in prefect.yaml must be the project's own; or commit again."
        )

    def put(self, upload: Upload) -> None:
        """Upload, unless the store has it."""
        if not upload.there:
            self._ask("put_object", Key=upload.key, Body=upload.content, Metadata={"sha256": upload.digest})


def _unpacked(content: bytes) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error):
        return content


def keys(project: str, version: str, lock: Path) -> tuple[str, str]:
    """Return where the code and its lock go."""
    return f"{project}/{version}.tar.gz", f"{project}/{version}.{lock.name.removeprefix('.')}"
