"""The Python that a model was made with, and the one that it is served with."""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path

RECORDED = re.compile(r"^\s+python_version:\s*['\"]?(\d+\.\d+)", re.MULTILINE)
INSTALLED = re.compile(r"^version(?:_info)?\s*=\s*(\d+\.\d+)", re.MULTILINE)
MOST_BYTES = 2**20
OLDEST = (3, 11)


def recorded(model: Path) -> str:
    """Return the minor version, such as 3.13, that a model was made with; empty if it is not recorded."""
    return _first(RECORDED, model / "MLmodel")


def installed(python: Path) -> str:
    """Return the minor version of an environment's interpreter; empty if it is in no environment."""
    return _first(INSTALLED, python.parent.parent / "pyvenv.cfg")


def _first(pattern: re.Pattern[str], file: Path) -> str:
    try:
        with file.open(errors="replace") as opened:
            found = pattern.search(opened.read(MOST_BYTES))
    except OSError:
        return ""
    return found[1] if found else ""


@functools.cache
def minor_of(python: str) -> str:
    """Return the minor version of an interpreter."""
    line = [python, "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    return subprocess.run(line, capture_output=True, text=True, check=True, cwd="/").stdout.strip()


def difference(made: str, serves: str) -> str:
    """Say that a model is served by another Python than it was made with; empty: it is the same, or one is unknown."""
    if not made or not serves or made == serves:
        return ""
    install = f"install Python {made} on the host, set python_builds_url so that uv fetches it, or "
    return (
        f"The model was made with Python {made}; this host serves with {serves}. If that is the cause, "
        f"{install if can_serve(made) else ''}make the model with Python {serves}."
    )


def can_serve(version: str) -> bool:
    """Tell whether the program that runs models works with a Python of this minor version."""
    return tuple(map(int, version.split("."))) >= OLDEST
