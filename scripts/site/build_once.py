"""Keep what is built for hosts in a folder per digest of its sources, so that it is built only when they change."""

from __future__ import annotations

import fcntl
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

KEPT = 5
"""The newest builds stay: a play that began with earlier sources may still be sending one to hosts."""


def build_once(cache: Path, digest: str, make: Callable[[Path], None]) -> Path:
    """Return the folder of a digest; if it is missing, let `make` fill a temporary one, which then takes its place.

    Passes on what `make` raises.
    """
    folder = cache / digest
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # plays on several hosts ask at the same time
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                draft = Path(scratch, "build")
                make(draft)
                draft.rename(folder)
            built = [path for path in cache.iterdir() if re.fullmatch("[0-9a-f]{16}", path.name)]
            for old in sorted(built, key=lambda path: path.stat().st_mtime)[:-KEPT]:
                shutil.rmtree(old)
    return folder
