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
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from metalworks.environments import packages, unused
from metalworks.errors import FlowRunError
from metalworks.flow_run.lock import check_requirements, has_hashes, lock_of, locked_versions, read_toml, settings

Tell = Callable[[str], None]

MARKER = ".complete"
"""Written last into an environment; its age is the time since a run last used the environment."""
KEEP_SECONDS = 30 * 24 * 3600
"""Archives and environments that no run used for this long are removed when a new environment is built."""


def identity(code: Path) -> str:
    """Return the name of the environment that this project locks, with this interpreter."""
    parts: list[Any] = [settings(code).get("tool", {}).get("uv", {}), sys.version]
    lock = lock_of(code)
    python = code / ".python-version"
    if python.is_file():
        parts.append(python.read_text().strip())
    if lock.name != "uv.lock":
        parts += [lock.name, settings(code).get("project", {}).get("requires-python")]
    total = hashlib.sha256(lock.read_bytes())
    total.update(json.dumps(parts, sort_keys=True, default=str).encode())
    return total.hexdigest()[:16]


def import_path(code: Path) -> list[str]:
    """Return where the project and its local packages are imported from: the run's own copy of them."""
    roots = [code]
    lock = lock_of(code)
    if lock.name != "uv.lock":
        roots += [code / "src"] if (code / "src").is_dir() else []
        return list(map(str, roots))
    for package in read_toml(lock).get("package", []):
        source = package.get("source", {})
        local = source.get("editable") or source.get("directory") or source.get("virtual")
        if local:
            root = (code / local).resolve()
            roots.append(root / "src" if (root / "src").is_dir() else root)
    return list(dict.fromkeys(map(str, roots)))


def require_prefect(code: Path, tell: Tell) -> None:
    """Refuse a project that cannot report to Prefect; warn when its version is not the platform's."""
    locked = locked_versions(code).get("prefect")
    ours = metadata.version("prefect")
    lock = lock_of(code).name
    if locked is None:
        how = f"run `uv add prefect=={ours}` in its project" if lock == "uv.lock" else f"add prefect=={ours} to it"
        raise FlowRunError(f"The flow's {lock} holds no prefect: {how}.")
    if locked != ours:
        tell(f"The flow's project locks prefect {locked}, this platform runs {ours}: lock the same version.")


def uv_cache(cache: Path) -> Path:
    """Return where uv keeps packages: beside the environments, unless somebody says otherwise."""
    return Path(os.environ.get("UV_CACHE_DIR", cache / "uv"))


def build(code: Path, target: Path, cache: Path, lock: int) -> None:
    """Install what the project locks, all but the project itself, from nothing."""
    shutil.rmtree(target, ignore_errors=True)
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")},
        "UV_PROJECT_ENVIRONMENT": str(target),
        "UV_CACHE_DIR": str(uv_cache(cache)),
        "UV_PYTHON_DOWNLOADS": "never",
    }
    for line in _install_commands(code, target):
        # uv holds the lock too: were this process killed, the next run must not build beside uv.
        done = subprocess.run(
            line,
            cwd=code,
            env=environment,
            pass_fds=[lock],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            shutil.rmtree(target, ignore_errors=True)
            name = lock_of(code).name
            raise FlowRunError(f"The flow's environment cannot be installed from its {name}:\n{done.stderr.strip()}")


def _install_commands(code: Path, target: Path) -> list[list[str]]:
    """Return how the environment is made of the project's lock."""
    if lock_of(code).name == "uv.lock":
        options = ["--locked", "--no-dev", "--no-install-local", "--compile-bytecode", "--no-progress"]
        return [["uv", "sync", *options]]
    requirements = (code / "requirements.txt").read_text()
    check_requirements(requirements)
    options = ["--compile-bytecode", "--no-progress", *(["--require-hashes"] if has_hashes(requirements) else [])]
    python = ["--python", f"{target}/bin/python"]
    return [
        ["uv", "venv", "--quiet", str(target)],
        ["uv", "pip", "sync", *options, *python, "requirements.txt"],
        # Nothing is installed that the file does not name: what it forgot is noticed here.
        ["uv", "pip", "check", *python],
    ]


def prune(cache: Path, keep_seconds: float = KEEP_SECONDS) -> set[str]:
    """Remove archives and environments that no run used for long; return the packages that these had."""
    oldest = time.time() - keep_seconds
    had = set[str]()
    for packed in (cache / "code").glob("*"):
        if packed.stat().st_mtime < oldest:
            packed.unlink(missing_ok=True)
    for marker in (cache / "environments").glob(f"*/{MARKER}"):
        if marker.stat().st_mtime >= oldest:
            continue
        with marker.parent.with_suffix(".lock").open("w") as lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held: a run is just taking this environment
            if marker.stat().st_mtime < oldest:
                had |= packages(marker.parent)
                shutil.rmtree(marker.parent)
    return had


def environment_of(code: Path, cache: Path, tell: Tell) -> Path:
    """Return the environment that the project locks, built if this host does not have it yet."""
    folder = cache / "environments"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / identity(code)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / MARKER).exists():
            tell(f"Installing environment {target.name}, the first on this host for this {lock_of(code).name}.")
            began = time.monotonic()
            build(code, target, cache, lock.fileno())
            if names := unused(prune(cache), folder.glob("*/")):
                clean = ["uv", "cache", "clean", "--quiet", "--cache-dir", str(uv_cache(cache)), *names]
                subprocess.run(clean, cwd=folder, capture_output=True, check=False)  # another run may try again
            tell(f"Installed environment {target.name} in {time.monotonic() - began:.1f} s.")
        (target / MARKER).touch()
    return target
