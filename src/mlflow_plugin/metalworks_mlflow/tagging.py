"""The tags that MLflow accepts."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Mapping

CONTEXT = "metalworks.context"
"""Tag by which the thread finds the run; "failed: …" if nothing could be recorded."""
LONGEST = 5000
"""Servers truncate longer values or refuse the run, and truncated JSON is useless."""
_LONGEST_NAME = 250


def fit(found: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that MLflow accepts: an invalid one would make creating the run fail."""
    return {
        name: value.encode(errors="replace").decode()
        for name, value in found.items()
        if _allowed(name) and len(value) <= LONGEST
    }


def left_out(found: Mapping[str, str]) -> list[str]:
    """Say of each tag that `fit` leaves out why it does."""
    refused = [f"{name}: MLflow does not allow this name" for name in found if not _allowed(name)]
    long = [name for name, value in found.items() if _allowed(name) and len(value) > LONGEST]
    return refused + [f"{name}: longer than {LONGEST} characters" for name in long]


def key(name: str) -> str:
    """Return a name that MLflow allows: this one, or else one that resembles it and ends with its hash."""
    if _allowed(name):
        return name
    similar = re.sub(r"[^/\w.\- ]", "_", name)
    if len(similar) > _LONGEST_NAME - 9:
        similar = f"{similar[:100]}_{similar[-140:]}"
    return f"{similar}-{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:8]}"


def _allowed(name: str) -> bool:
    return bool(re.fullmatch(rf"[/\w.\- ]{{1,{_LONGEST_NAME}}}", name)) and posixpath.normpath(name) == name
