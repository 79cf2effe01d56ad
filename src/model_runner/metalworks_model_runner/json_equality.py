"""Compares two predictions in JSON: their values, or only their form.

Imports the standard library alone, since the supervisor uses it.
"""

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


def alike(ours: Any, expected: Any) -> bool:
    """Return whether two predictions have the same form: number of rows, names, and types of values; null fits all.

    For models whose answers vary. Lists inside a row may be of any length, as generated text is.
    """
    if isinstance(expected, list) and isinstance(ours, list) and len(ours) != len(expected):
        return False
    if isinstance(expected, dict) and isinstance(ours, dict) and "predictions" in expected:
        return ours.keys() == expected.keys() and alike(ours["predictions"], expected["predictions"])
    return _alike(ours, expected)


def _alike(ours: Any, expected: Any) -> bool:
    if ours is None or expected is None:
        return True
    if isinstance(expected, list) and isinstance(ours, list):
        return all(map(_alike, ours, expected))
    if isinstance(expected, dict) and isinstance(ours, dict):
        return ours.keys() == expected.keys() and all(_alike(ours[key], expected[key]) for key in expected)
    if isinstance(expected, int | float) and not isinstance(expected, bool):
        return isinstance(ours, int | float) and not isinstance(ours, bool)
    return type(ours) is type(expected)
