"""The environment of a project, built once per host and shared by all commits with the same lock file."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from metalworks.environments import MARKER, build, packages, unused, uv_variables
from metalworks.errors import FlowRunError
from metalworks.flow_run.lock import (
    has_hashes,
    lock_of,
    locked_versions,
    read_toml,
    requirements_of,
    settings,
)
from metalworks.install_errors import explain
from metalworks.requirement_files import PASS_OVER, may_pass_over, site_indexes, wrong_index

Tell = Callable[[str], None]

KEEP_SECONDS = 30 * 24 * 3600
"""Archives and environments that no run has used for this long are removed when a new environment is built."""


def identity(code: Path) -> str:
    """Return the name of the environment that this project locks, with this interpreter.

    Of the interpreter what compiled packages depend on: a security update leaves environments as they are.
    """
    parts: list[Any] = [settings(code).get("tool", {}).get("uv", {}), sysconfig.get_config_var("SOABI")]
    lock = lock_of(code)
    python = code / ".python-version"
    if python.is_file():
        parts.append(python.read_text().strip())
    if lock.name != "uv.lock":
        parts += [lock.name, settings(code).get("project", {}).get("requires-python")]
    total = hashlib.sha256(lock.read_bytes())
    for package in requirements_of(code).files if lock.name != "uv.lock" else []:
        parts.append(hashlib.sha256(package.read_bytes()).hexdigest())
    total.update(json.dumps(parts, sort_keys=True, default=str).encode())
    return total.hexdigest()[:16]


def import_path(code: Path) -> list[str]:
    """Return the folders that the project and its local packages are imported from: in the run's own copy."""
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
    """Refuse a project without Prefect; warn if its version differs from the platform's."""
    locked = locked_versions(code).get("prefect")
    ours = metadata.version("prefect")
    lock = lock_of(code).name
    if locked is None:
        how = f"run `uv add prefect=={ours}` in its project" if lock == "uv.lock" else f"add prefect=={ours} to it"
        raise FlowRunError(f"The flow's {lock} does not contain prefect: {how}.")
    if locked != ours:
        tell(f"The flow's project has prefect {locked}, but this platform runs {ours}: lock the same version.")


def uv_cache(cache: Path) -> Path:
    """Return uv's cache folder: beside the environments, unless UV_CACHE_DIR names another."""
    return Path(os.environ.get("UV_CACHE_DIR", cache / "uv"))


def install(code: Path, target: Path, cache: Path, lock: int) -> None:
    """Build the environment from scratch, without the project itself."""
    if target.exists():
        remove(target)
    variables = uv_variables() | {"UV_PROJECT_ENVIRONMENT": str(target), "UV_CACHE_DIR": str(uv_cache(cache))}
    commands, name = _install_commands(code, target), lock_of(code).name
    if name != "uv.lock":
        asked, site = requirements_of(code), site_indexes()
        variables |= asked.sources.variables(site)
        if why := wrong_index(["uv"], asked.lines, site, variables, code):
            raise FlowRunError(f"Cannot install the flow's environment from its {name}:\n{why}")
    error = build(target, commands, lock, cwd=code, env=variables)
    if may_pass_over(error) and name != "uv.lock":
        error = build(target, commands, lock, cwd=code, env=variables | PASS_OVER)
    if error:
        raise FlowRunError(f"Cannot install the flow's environment from its {name}:\n{explain(error, model=False)}")


def _install_commands(code: Path, target: Path) -> list[list[str]]:
    """Return the commands that build the environment."""
    if lock_of(code).name == "uv.lock":
        options = ["--locked", "--no-dev", "--no-install-local", "--compile-bytecode", "--no-progress"]
        return [["uv", "sync", *options]]
    requirements = (code / "requirements.txt").read_text()
    options = ["--compile-bytecode", "--no-progress", *(["--require-hashes"] if has_hashes(requirements) else [])]
    python = ["--python", f"{target}/bin/python"]
    return [
        ["uv", "venv", "--quiet", str(target)],
        ["uv", "pip", "sync", *options, *python, "requirements.txt"],
        # `sync` installs only what the file names; this finds missing dependencies.
        ["uv", "pip", "check", *python],
    ]


def protect(environment: Path) -> None:
    """Make the folders of an environment read-only: what a run installs or removes would be there for all others."""
    for folder, _, _ in os.walk(environment):
        if Path(folder) != environment:  # which has the marker
            Path(folder).chmod(0o555)


def unprotect(environment: Path) -> None:
    """Make the folders of an environment writable for their owner again."""
    for folder, _, _ in os.walk(environment):
        Path(folder).chmod(0o755)


def remove(environment: Path) -> None:
    """Remove an environment, whether it is protected or not."""
    unprotect(environment)
    shutil.rmtree(environment)


def prune(cache: Path, keep_seconds: float = KEEP_SECONDS) -> set[str]:
    """Remove archives and environments that no run has used for long; return the removed packages."""
    oldest = time.time() - keep_seconds
    had = set[str]()
    for packed in (cache / "code").glob("*"):
        if packed.stat().st_mtime < oldest:
            packed.unlink(missing_ok=True)
    for marker in (cache / "environments").glob(f"*/{MARKER}"):
        if marker.stat().st_mtime >= oldest:
            continue
        with marker.parent.with_suffix(".lock").open("w") as lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held while a run takes this environment
            if marker.stat().st_mtime < oldest:
                had |= packages(marker.parent)
                remove(marker.parent)
    return had


def environment_of(code: Path, cache: Path, tell: Tell, *, shared: bool = False) -> Path:
    """Return the environment that the project locks, built if this host does not have it yet.

    `shared`: other projects' runs use it, too, and none may change it.
    """
    folder = cache / "environments"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / identity(code)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / MARKER).exists():
            tell(f"Installing environment {target.name}: this {lock_of(code).name} is new on this host.")
            began = time.monotonic()
            install(code, target, cache, lock.fileno())
            if shared:
                protect(target)
            if names := unused(prune(cache), folder.glob("*/")):
                clean = ["uv", "cache", "clean", "--quiet", "--cache-dir", str(uv_cache(cache)), *names]
                subprocess.run(clean, cwd=folder, capture_output=True, check=False)  # a later run tries again
            tell(f"Installed environment {target.name} in {time.monotonic() - began:.1f} s.")
        (target / MARKER).touch()
    return target
