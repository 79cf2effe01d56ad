"""The environment that a project locks, built once per host and shared by all commits that lock the same."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from metalworks.flow_run.errors import FlowRunError

Tell = Callable[[str], None]

MARKER = ".complete"
"""Written last into an environment; its age is the time since a run last used the environment."""
KEEP_SECONDS = 30 * 24 * 3600
"""Archives and environments that no run used for this long are removed when a new environment is built."""


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
