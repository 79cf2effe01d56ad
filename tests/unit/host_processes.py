"""Processes of this machine, for tests that start some."""

from __future__ import annotations

from pathlib import Path


def gone(process: int) -> bool:
    """Tell whether a process has ended; a zombie that its parent has not asked for has."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
