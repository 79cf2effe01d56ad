"""The packages installed in this process's environment."""

from __future__ import annotations

import functools
import json
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from . import masking

OURS = "metalworks-mlflow"


def requirements() -> str:
    """Return a requirements.txt of the installed packages; editable ones are comments in it."""
    # Reading the metadata is slow, so cache it; installing or removing a package changes a folder's time.
    return _read(tuple((folder, _changed(folder)) for folder in sys.path))


def _changed(folder: str) -> int:
    try:
        return Path(folder or ".").stat().st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(maxsize=1)
def _read(_folders: tuple[tuple[str, int], ...]) -> str:
    lines: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        key = re.sub(r"[-_.]+", "-", name or "").lower()
        if name and key != OURS and key not in lines:  # Python imports the first one on the path
            lines[key] = _line(name, distribution)
    return "".join(f"{line}\n" for _, line in sorted(lines.items()))


def _line(name: str, distribution: metadata.Distribution) -> str:
    pinned = f"{name}=={distribution.version}"
    try:
        origin: dict[str, Any] = json.loads(distribution.read_text("direct_url.json") or "{}")
    except ValueError:
        return pinned
    url = masking.address(origin.get("url", ""))
    if not url:
        return pinned
    if (origin.get("dir_info") or {}).get("editable"):
        return f"# in development: {pinned} from {url}"
    vcs = origin.get("vcs_info")
    if vcs:
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    if origin.get("subdirectory"):
        url += f"#subdirectory={origin['subdirectory']}"
    return f"{name} @ {url}"
