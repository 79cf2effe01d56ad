"""Compares two predictions in JSON. Imports the standard library alone, since the supervisor uses it."""

from __future__ import annotations

import math
from typing import Any

RELATIVE = 1e-5
"""Two numbers are the same if they differ by at most this share of the value."""
OF_SMALL = 1e-9
"""Or by at most this."""


def same(ours: Any, expected: Any) -> bool:
    """Return whether two predictions are the same: types, names and lengths exactly, numbers within the tolerance."""
    if isinstance(expected, list) and isinstance(ours, list):
        return len(ours) == len(expected) and all(map(same, ours, expected))
    if isinstance(expected, dict) and isinstance(ours, dict):
        return ours.keys() == expected.keys() and all(same(ours[key], expected[key]) for key in expected)
    if isinstance(expected, bool) is not isinstance(ours, bool):
        return False
    if isinstance(expected, float) and isinstance(ours, int | float):
        both_nan = math.isnan(ours) and math.isnan(expected)
        return both_nan or math.isclose(ours, expected, rel_tol=RELATIVE, abs_tol=OF_SMALL)
    return bool(ours == expected)
