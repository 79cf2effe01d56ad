"""Helpers for all code that builds Python environments: package names, calls of uv, and what to drop from its cache."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MARKER = ".complete"
"""Written last into an environment; its age is the time since the environment was last used."""


def normalize_name(name: str) -> str:
    """Return a distribution's normalized name, as package indexes compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def packages(environment: Path) -> set[str]:
    """Return the installed packages, each as name-version."""
    return {path.name.removesuffix(".dist-info") for path in environment.glob("lib/*/site-packages/*.dist-info")}


def unused(gone: set[str], environments: Iterable[Path]) -> list[str]:
    """Return the names of those removed packages that no remaining environment has in the same version.

    Pass them to `uv cache clean`; uv never removes them from its cache by itself.
    """
    left = gone - {package for environment in environments for package in packages(environment)}
    return sorted({package.partition("-")[0] for package in left})


def uv_variables() -> dict[str, str]:
    """Return the variables for uv: no environment of the caller's, and no Python from the internet by default."""
    dropped = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {"UV_PYTHON_DOWNLOADS": "never"} | kept


def build(target: Path, commands: Iterable[list[str]], lock: int, **options: Any) -> str:
    """Build an environment from nothing, or remove it; return the error of the command that failed, if any.

    The commands hold the lock too: if this process is killed, the next one must not build beside them.
    """
    shutil.rmtree(target, ignore_errors=True)
    for command in commands:
        done = subprocess.run(command, pass_fds=[lock], capture_output=True, text=True, check=False, **options)
        if done.returncode:
            shutil.rmtree(target, ignore_errors=True)
            return done.stderr.strip() or f"uv ended with exit status {done.returncode}"
    return ""
