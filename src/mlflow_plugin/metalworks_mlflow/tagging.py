"""The tags that MLflow accepts."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping

CONTEXT = "metalworks.context"
"""Tag by which the thread finds the run; "failed: …" if nothing could be recorded."""
_LONGEST = 5000
"""Servers truncate longer values or refuse the run, and truncated JSON is useless."""


def fit(found: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that MLflow accepts: an invalid one would make creating the run fail."""
    return {
        name: value.encode(errors="replace").decode()
        for name, value in found.items()
        if re.fullmatch(r"[/\w.\- ]{1,250}", name) and posixpath.normpath(name) == name and len(value) <= _LONGEST
    }
