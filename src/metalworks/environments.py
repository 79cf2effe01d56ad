"""What everything that builds Python environments shares: package names, and what uv's cache may forget."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path


def normalize_name(name: str) -> str:
    """Return a distribution's name in the form that indexes compare."""
    return re.sub(r"[-_.]+", "-", name).lower()


def packages(environment: Path) -> set[str]:
    """Return the installed packages, each as name-version."""
    return {path.name.removesuffix(".dist-info") for path in environment.glob("lib/*/site-packages/*.dist-info")}


def unused(gone: set[str], environments: Iterable[Path]) -> list[str]:
    """Return the names of removed packages that no remaining environment has in the same version.

    Pass them to `uv cache clean`: nothing else ever removes them from the cache.
    """
    left = gone - {package for environment in environments for package in packages(environment)}
    return sorted({package.partition("-")[0] for package in left})
