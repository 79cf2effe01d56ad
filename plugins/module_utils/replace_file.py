"""Replace a file atomically: readers see the old content or the new, and only if they may read it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .before import keep

UNCHANGED = -1
"""Owner or group that keeps the file as the current user's."""


def read(path: Path, errors: str = "strict") -> str:
    """Return a file's text; empty if it is missing."""
    return path.read_text(errors=errors) if path.exists() else ""


def differs(path: Path, content: str, mode: int = 0o644, group: int = 0, owner: int = 0) -> bool:
    """Tell whether the file is missing, a link, or different in content, mode, group or owner."""
    if path.is_symlink() or not path.is_file() or path.read_bytes() != content.encode():
        return True
    status = path.stat()
    return (status.st_mode & 0o7777, status.st_uid, status.st_gid) != (mode, owner, group)


def replace(
    path: Path,
    content: str,
    mode: int = 0o644,
    group: int = 0,
    owner: int = 0,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write the content to a draft in the same folder, let `check` reject it with an exception, and rename it.

    Creates missing parent folders. The draft has a fixed name, so that a killed run leaves at most one, which the next
    run replaces. The name begins with a dot, so that programs that read a whole folder ignore it.
    """
    keep(path)
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        handle.write(content)
    try:
        if check:
            check(draft)
        os.chown(draft, owner, group)
        draft.chmod(mode)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def diff(path: Path, before: str, after: str) -> dict[str, str]:
    """Return a change as `--diff` shows it."""
    return {"before_header": str(path), "after_header": str(path), "before": before, "after": after}
