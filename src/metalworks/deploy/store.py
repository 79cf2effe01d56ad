"""Flow code in the object store."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalworks.errors import CommandError

BUCKET = "METALWORKS_FLOW_CODE_BUCKET"


@dataclass(frozen=True)
class Upload:
    """An object to upload, and whether the store already has it."""

    bucket: str
    key: str
    content: bytes
    there: bool

    @property
    def url(self) -> str:
        """Return its URL."""
        return f"s3://{self.bucket}/{self.key}"

    @property
    def digest(self) -> str:
        """Return the content's SHA-256."""
        return hashlib.sha256(self.content).hexdigest()


class Store:
    """The bucket of flow code."""

    def __init__(self) -> None:
        """Connect as the user's environment says. Raises CommandError."""
        import botocore.session

        self.bucket = os.environ.get(BUCKET, "")
        if not self.bucket:
            raise CommandError(f"{BUCKET} is not set. Log in to one of the platform's dev hosts, or set it.")
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
            raise CommandError(f"cannot use the object store {store}: {error}") from error

    def plan(self, key: str, content: bytes) -> Upload:
        """Return what to upload; if somebody has already uploaded the commit, return that archive.

        The same files pack differently with other versions of Python and Git, and one archive per commit is enough.
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
            f"s3://{self.bucket}/{key} already exists with different content, and deployments may use it. If two "
            "projects have the same name, change `name` in prefect.yaml; otherwise make a new commit."
        )

    def put(self, upload: Upload) -> None:
        """Upload, unless the store already has it."""
        if not upload.there:
            self._ask("put_object", Key=upload.key, Body=upload.content, Metadata={"sha256": upload.digest})


def _unpacked(content: bytes) -> object:
    """Return what an archive unpacks to: versions of Git and of this program write tars differently."""
    try:
        plain = gzip.decompress(content)
        with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
            return sorted(
                (item.name.rstrip("/"), item.mode & 0o100, item.linkname, file.read() if file else b"")
                for item in archive
                if not item.isdir()
                for file in [archive.extractfile(item) if item.isfile() else None]
            )
    except (OSError, EOFError, zlib.error, tarfile.TarError):
        return content


def keys(project: str, version: str, lock: Path) -> tuple[str, str]:
    """Return where the code and its lock go."""
    return f"{project}/{version}.tar.gz", f"{project}/{version}.{lock.name.removeprefix('.')}"
