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
    """Return the bucket and key of an s3:// URL."""
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc or not parts.path.strip("/"):
        raise FlowRunError(f"METALWORKS_FLOW_CODE is {url!r}; it must look like s3://bucket/project/commit.tar.gz.")
    return parts.netloc, parts.path.lstrip("/")


def fetch(url: str) -> bytes:
    """Return an object from the store that the AWS_* variables name."""
    bucket, key = bucket_and_key(url)
    import boto3  # slow to import, and not needed for cached code
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return bytes(boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read())
    except (BotoCoreError, ClientError) as error:
        store = os.environ.get("AWS_ENDPOINT_URL_S3", "AWS")
        raise FlowRunError(
            f"Cannot fetch {url} from {store}: {error} If the object is missing, run `metalworks deploy` again."
        ) from error


def archive(url: str, digest: str, cache: Path) -> Path:
    """Return the archive of the code, fetched unless this host has it; its name is its digest."""
    folder = cache / "code"
    folder.mkdir(parents=True, exist_ok=True)
    if digest and (known := folder / f"{digest}.tar.gz").exists():
        known.touch()
        return known
    content = fetch(url)
    found = hashlib.sha256(content).hexdigest()
    if digest and found != digest:
        raise FlowRunError(f"{url} has digest {found}, expected {digest}. Deploy again from a clean checkout.")
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as fresh:
        fresh.write(content)
    return Path(fresh.name).replace(folder / f"{found}.tar.gz")


def unpack(packed: Path, code: Path) -> None:
    """Unpack the project into the run's folder."""
    done = subprocess.run(["tar", "-xzf", packed, "-C", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise FlowRunError(f"Cannot unpack the flow's code, a .tar.gz archive: {done.stderr.strip()}")
    lock_of(code)
    without_git(code)


def without_git(code: Path) -> None:
    """Let DVC work in the run's folder, which is no Git repository; a clone that the flow makes is not concerned."""
    settings = code / ".dvc/config.local"
    if settings.parent.is_dir():
        kept = settings.read_text() if settings.is_file() else ""
        settings.write_text(f"{kept}[core]\n    no_scm = true\n")
