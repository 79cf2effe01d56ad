"""Which tags MLflow takes."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping

CONTEXT = "metalworks.context"
"""Tag by which a run is found again; "failed: …" says what could not be recorded."""
_LONGEST = 5000
"""Servers cut a longer value or refuse the run; half a list of JSON says nothing."""


def fit(found: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that MLflow takes: one that it does not would keep the whole run from being made."""
    return {
        name: value.encode(errors="replace").decode()
        for name, value in found.items()
        if re.fullmatch(r"[/\w.\- ]{1,250}", name) and posixpath.normpath(name) == name and len(value) <= _LONGEST
    }
