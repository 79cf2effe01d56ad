"""Run one Prefect flow run in its own project's code and locked environment.

The command of the work pools. A worker starts it in an empty folder with these variables:

- ``METALWORKS_FLOW_CODE``: ``s3://bucket/project/commit.tar.gz``, the project at one commit with pyproject.toml and
  uv.lock at its root; a deployment sets it. Without it the flow runs in the worker's own environment.
- ``METALWORKS_FLOW_CODE_SHA256``: digest of that archive, optional. With it the archive is verified, and fetched
  once per host instead of once per run.
- ``METALWORKS_FLOW_CACHE``: folder on the host for archives and environments.

The code is unpacked into the run's folder. The environment is shared by all commits that lock the same, is built
once per host, and holds everything but the project itself, which is imported from the run's folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

Tell = Callable[[str], None]

ENGINE = ["-m", "prefect.engine"]
RUN_ID = "PREFECT__FLOW_RUN_ID"
UNFINISHED = {"PENDING", "RUNNING", "CANCELLING"}
REPORT_SECONDS = 10.0
"""A worker that lives this long after its flow has reported the end itself."""
DEFAULT_CACHE = "/var/lib/prefect-worker"
MARKER = ".complete"
"""Written last into an environment; its age is the time since a run last used the environment."""
KEEP_SECONDS = 30 * 24 * 3600
"""Archives and environments that no run used for this long are removed when a new environment is built."""


class FlowRunError(Exception):
    """The flow run cannot start; the message says why and how to mend it."""


# -- Code


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
    for name in ("pyproject.toml", "uv.lock"):
        if not (code / name).is_file():
            raise FlowRunError(f"The flow's code has no {name} at its root: pack the folder that holds it (`uv lock`).")


# -- Environment


def read_toml(path: Path) -> dict[str, Any]:
    """Return a TOML file's content."""
    try:
        return tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise FlowRunError(f"{path.name} is no TOML: {error}") from error


def identity(code: Path) -> str:
    """Return the name of the environment that this project locks, with this interpreter."""
    choices = read_toml(code / "pyproject.toml").get("tool", {}).get("uv", {})
    total = hashlib.sha256((code / "uv.lock").read_bytes())
    total.update(json.dumps([choices, sys.version], sort_keys=True, default=str).encode())
    return total.hexdigest()[:16]


def import_path(code: Path) -> list[str]:
    """Return where the project and its local packages are imported from: the run's own copy of them."""
    roots = [code]
    for package in read_toml(code / "uv.lock").get("package", []):
        source = package.get("source", {})
        local = source.get("editable") or source.get("directory") or source.get("virtual")
        if local:
            root = (code / local).resolve()
            roots.append(root / "src" if (root / "src").is_dir() else root)
    return list(dict.fromkeys(map(str, roots)))


def require_prefect(code: Path, tell: Tell) -> None:
    """Refuse a project that cannot report to Prefect; warn when its version is not the platform's."""
    packages = read_toml(code / "uv.lock").get("package", [])
    locked = next((package.get("version", "") for package in packages if package["name"] == "prefect"), None)
    ours = metadata.version("prefect")
    if locked is None:
        raise FlowRunError(f"The flow's uv.lock holds no prefect: run `uv add prefect=={ours}` in its project.")
    if locked != ours:
        tell(f"The flow's project locks prefect {locked}, this platform runs {ours}: lock the same version.")


def build(code: Path, target: Path, cache: Path, lock: int) -> None:
    """Install what the project locks, all but the project itself, from nothing."""
    shutil.rmtree(target, ignore_errors=True)
    options = ["--locked", "--no-dev", "--no-install-local", "--compile-bytecode", "--no-progress"]
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")},
        "UV_PROJECT_ENVIRONMENT": str(target),
        "UV_CACHE_DIR": os.environ.get("UV_CACHE_DIR", str(cache / "uv")),
        "UV_PYTHON_DOWNLOADS": "never",
    }
    # uv holds the lock too: were this process killed, the next run must not build beside uv.
    done = subprocess.run(
        ["uv", "sync", *options],
        cwd=code,
        env=environment,
        pass_fds=[lock],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        shutil.rmtree(target, ignore_errors=True)
        raise FlowRunError(f"The flow's environment cannot be installed from its uv.lock:\n{done.stderr.strip()}")


def prune(cache: Path, keep_seconds: float = KEEP_SECONDS) -> None:
    """Remove archives and environments that no run used for long."""
    oldest = time.time() - keep_seconds
    for packed in (cache / "code").glob("*"):
        if packed.stat().st_mtime < oldest:
            packed.unlink(missing_ok=True)
    for marker in (cache / "environments").glob(f"*/{MARKER}"):
        if marker.stat().st_mtime >= oldest:
            continue
        with marker.parent.with_suffix(".lock").open("w") as lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held: a run is just taking this environment
            if marker.stat().st_mtime < oldest:
                shutil.rmtree(marker.parent)


def environment_of(code: Path, cache: Path, tell: Tell) -> Path:
    """Return the environment that the project locks, built if this host does not have it yet."""
    folder = cache / "environments"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / identity(code)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / MARKER).exists():
            tell(f"Installing environment {target.name}, the first on this host for this uv.lock.")
            began = time.monotonic()
            build(code, target, cache, lock.fileno())
            prune(cache)
            tell(f"Installed environment {target.name} in {time.monotonic() - began:.1f} s.")
        (target / MARKER).touch()
    return target


# -- End


def alive(process: int) -> bool:
    """Tell whether a process is there, whoever's it is."""
    return Path(f"/proc/{process}").exists()


def crash(run: str, message: str) -> None:
    """Make a reason the final state of a flow run, unless it has one."""
    from prefect.client.orchestration import get_client
    from prefect.states import Crashed

    with get_client(sync_client=True) as client:
        state = client.read_flow_run(UUID(run)).state
        if state is None or state.type.value in UNFINISHED:
            client.set_flow_run_state(UUID(run), Crashed(message=message))


def watch(run: str) -> None:
    """Leave a process behind that ends the flow run in Prefect when both this process and its worker have ended.

    A worker reports what becomes of its flows, but one that is stopped kills them without a word: they would count as
    running for ever. The process left behind notices the end by a pipe that this one, and what it becomes, holds open.
    """
    worker = os.getppid()
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(reading)
        os.set_inheritable(writing, True)
        os.waitpid(child, 0)
        return
    if os.fork():  # the worker must not wait for a grandchild of its own
        os._exit(0)
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # systemd stops all of the service at once; this one has work then
    os.chdir("/")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.close(writing)
    try:
        os.read(reading, 1)
        deadline = time.monotonic() + REPORT_SECONDS
        while alive(worker) and time.monotonic() < deadline:
            time.sleep(0.2)
        if not alive(worker):
            crash(run, "The worker was stopped, restarted or killed while this run was on it.")
    finally:
        os._exit(0)


# -- Run


def command(code: Path, variables: Mapping[str, str], tell: Tell) -> tuple[list[str], dict[str, str]]:
    """Return the command line and the environment variables that run the flow, everything it needs in place."""
    url = variables.get("METALWORKS_FLOW_CODE", "")
    if not url:
        return [sys.executable, *ENGINE], dict(variables)
    cache = Path(variables.get("METALWORKS_FLOW_CACHE", DEFAULT_CACHE))
    unpack(archive(url, variables.get("METALWORKS_FLOW_CODE_SHA256", ""), cache), code)
    require_prefect(code, tell)
    environment = environment_of(code, cache, tell)
    path = [*import_path(code), *filter(None, [variables.get("PYTHONPATH")])]
    return [f"{environment}/bin/python", *ENGINE], {
        **variables,
        "VIRTUAL_ENV": str(environment),
        "PATH": f"{environment}/bin:{variables.get('PATH', os.defpath)}",
        "PYTHONPATH": os.pathsep.join(path),
    }


def log(message: str) -> None:
    """Print a line, and put it among the flow run's own logs."""
    print(message, flush=True)
    if run := os.environ.get(RUN_ID):
        from prefect.client.orchestration import get_client

        now = datetime.now(UTC).isoformat()
        line = {"name": "metalworks", "level": logging.INFO, "message": message, "timestamp": now, "flow_run_id": run}
        with get_client(sync_client=True) as client:
            client.create_logs([line])


def main() -> None:
    """Become the flow run's process, or end the flow run with the reason why it cannot start."""
    run = os.environ.get(RUN_ID)
    if run:
        watch(run)
    try:
        line, variables = command(Path.cwd(), os.environ, log)
    except FlowRunError as error:
        print(error, file=sys.stderr, flush=True)
        if run:
            crash(run, str(error))
        raise SystemExit(1) from error
    os.execve(line[0], line, variables)
