"""Build the `metalworks` package once per content of its sources and print where the wheel stands.

The folder it stands in is named after the digest of the sources, so hosts can tell versions apart.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "dist"
KEPT = 5
"""The newest that stay: a play that began with other sources may still be on its way to the hosts."""


def sources() -> list[Path]:
    """Return the files that the package is built from, sorted."""
    return sorted(path for path in (ROOT / "src").rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def description() -> str:
    """Return the part of pyproject.toml that decides what is built; a new test tool is not a new package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return json.dumps([project["project"], project["build-system"], project["tool"]["hatch"]], sort_keys=True)


def digest(files: list[Path], described: str) -> str:
    """Return 16 hexadecimal digits that name this content."""
    total = hashlib.sha256(described.encode())
    for path in files:
        total.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return total.hexdigest()[:16]


def build() -> Path:
    """Return the wheel of the present sources, built if it is not there yet.

    Raises subprocess.CalledProcessError, after the builder's own words, when the package does not build.
    """
    folder = CACHE / digest(sources(), description())
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # hosts are set up side by side, and each asks
        if not folder.exists():
            make(folder)
            built = [path for path in CACHE.iterdir() if re.fullmatch("[0-9a-f]{16}", path.name)]
            for old in sorted(built, key=lambda path: path.stat().st_mtime)[:-KEPT]:
                shutil.rmtree(old)
    (wheel,) = folder.glob("*.whl")
    return wheel


def make(folder: Path) -> None:
    """Build the wheel into a folder that is there only when it is whole."""
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        # The controller's environment holds uv and the build backend: no second, unlocked download of either.
        uv = Path(sys.executable).with_name("uv")
        options = ["--quiet", "--no-build-isolation", "--python", sys.executable, "--out-dir", f"{scratch}/wheel"]
        subprocess.run([uv, "build", "--wheel", *options, ROOT], check=True)
        Path(f"{scratch}/wheel").rename(folder)


if __name__ == "__main__":
    print(build())
