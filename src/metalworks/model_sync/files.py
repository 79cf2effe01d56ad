"""JSON files that other programs read while they are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metalworks import plain_files

LARGEST_BYTES = 2**24


def write_json(path: Path, content: Any, mode: int = 0o640) -> None:
    """Replace a file atomically: readers see the old content or the new one."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    new.chmod(mode)
    new.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that another program replaces atomically; empty if it is missing or invalid."""
    try:
        content = json.loads(plain_files.read(path, LARGEST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
