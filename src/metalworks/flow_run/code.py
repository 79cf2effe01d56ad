"""The code of a flow run: an archive of the project at one commit, from the object store."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from metalworks.errors import FlowRunError
from metalworks.flow_run.lock import lock_of


def bucket_and_key(url: str) -> tuple[str, str]:
    """Return what an s3:// URL names."""
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc or not parts.path.strip("/"):
        raise FlowRunError(f"METALWORKS_FLOW_CODE is {url!r}; it must look like s3://bucket/project/commit.tar.gz.")
    return parts.netloc, parts.path.lstrip("/")


def fetch(url: str) -> bytes:
    """Return an object of the store that the environment's AWS_* variables name."""
    bucket, key = bucket_and_key(url)
    import boto3  # slow to import, and not needed for code that is here already
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return bytes(boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read())
    except (BotoCoreError, ClientError) as error:
        store = os.environ.get("AWS_ENDPOINT_URL_S3", "AWS")
        raise FlowRunError(f"{url} cannot be fetched from {store}: {error} Was the code uploaded?") from error


def archive(url: str, digest: str, cache: Path) -> Path:
    """Return the archive of the code on this host, named after its digest."""
    folder = cache / "code"
    folder.mkdir(parents=True, exist_ok=True)
    if digest and (known := folder / f"{digest}.tar.gz").exists():
        known.touch()
        return known
    content = fetch(url)
    found = hashlib.sha256(content).hexdigest()
    if digest and found != digest:
        raise FlowRunError(f"{url} has digest {found}, but {digest} was deployed. Deploy again from a clean checkout.")
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as fresh:
        fresh.write(content)
    return Path(fresh.name).replace(folder / f"{found}.tar.gz")


def unpack(packed: Path, code: Path) -> None:
    """Put the project into the run's folder."""
    done = subprocess.run(["tar", "-xzf", packed, "-C", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise FlowRunError(f"The flow's code is no readable .tar.gz: {done.stderr.strip()}")
    lock_of(code)
