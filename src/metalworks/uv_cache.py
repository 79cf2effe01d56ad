"""What uv keeps of packages goes with the last environment that had them: nothing else would ever remove it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def packages(environment: Path) -> set[str]:
    """Return what is installed, each as name-version."""
    return {path.name.removesuffix(".dist-info") for path in environment.glob("lib/*/site-packages/*.dist-info")}


def unused(gone: set[str], environments: Iterable[Path]) -> list[str]:
    """Return the names of the packages that went with environments and that none which stays has in that version."""
    left = gone - {package for environment in environments for package in packages(environment)}
    return sorted({package.partition("-")[0] for package in left})
