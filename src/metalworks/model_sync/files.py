"""Files that others read while they are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metalworks import plain_files

LARGEST_BYTES = 2**24


def write_json(path: Path, content: Any, mode: int = 0o640) -> None:
    """Replace a file in one step: a reader finds the old content or the new one."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    new.chmod(mode)
    new.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read what another program replaces in one step; nothing there, or nothing of use, is an empty mapping."""
    try:
        content = json.loads(plain_files.read(path, LARGEST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
