"""Helpers for all code that builds Python environments: package names, and which packages to drop from uv's cache."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path


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
