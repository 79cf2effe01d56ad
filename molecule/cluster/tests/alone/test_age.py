"""Smoke checks remove what they create and leftovers of killed checks, and never touch other data."""

from __future__ import annotations

from typing import Any

from test_operations import smoke

from scripts.tests.age import site

ROUNDS = 3


def test_smoke_leaves_nothing_behind_and_does_not_touch_other_data() -> None:
    """Every row, object, version and file is as before, even if earlier checks were killed."""
    with site.quiet(), site.others():
        before = site.standing()
        site.leave()
        assert site.differences(before, site.standing()), "what checks left is not seen: is the comparison broken?"
        for _ in range(ROUNDS):
            code, verdict = smoke()
            assert (code, verdict["failures"]) == (0, [])
        assert site.left(before) == []
    checks: Any = verdict["checks"]
    told = next(check["detail"] for check in checks if check["name"] == "experiments of the checks")
    # Named like those of smoke checks, but with a user's runs or files: the checks must leave them alone.
    assert told.count("was kept: it contains what no check created") == 2, told
