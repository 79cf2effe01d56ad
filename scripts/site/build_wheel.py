"""Build the `metalworks` package, once per state of its sources, and print the wheel's path.

The wheel's folder is named after the digest of the sources, so that hosts can tell versions apart.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

from scripts.site.build_once import build_once

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "dist"


def sources() -> list[Path]:
    """Return the files that the package is built from, sorted."""
    return sorted(path for path in (ROOT / "src").rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def description() -> str:
    """Return the parts of pyproject.toml that the build depends on; a new test tool does not count."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return json.dumps([project["project"], project["build-system"], project["tool"]["hatch"]], sort_keys=True)


def digest(files: list[Path], described: str) -> str:
    """Return 16 hexadecimal digits that name this content."""
    total = hashlib.sha256(described.encode())
    for path in files:
        total.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return total.hexdigest()[:16]


def build() -> Path:
    """Return the wheel of the current sources; build it if it is missing.

    Raises subprocess.CalledProcessError, after the builder's own words, when the package does not build.
    """
    (wheel,) = build_once(CACHE, digest(sources(), description()), make).glob("*.whl")
    return wheel


def make(folder: Path) -> None:
    """Build the wheel into a folder."""
    # Use uv and the build backend of the controller's locked environment; download neither.
    uv = Path(sys.executable).with_name("uv")
    options = ["--quiet", "--no-build-isolation", "--python", sys.executable, "--out-dir", str(folder)]
    subprocess.run([uv, "build", "--wheel", *options, ROOT], check=True)


if __name__ == "__main__":
    print(build())
