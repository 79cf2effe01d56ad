"""Checks that run for years: what they make goes with them, what they left goes too, and what people made stays."""

from __future__ import annotations

from typing import Any

from test_operations import smoke

from scripts.tests.age import site

ROUNDS = 3


def test_smoke_leaves_nothing_behind_and_does_not_touch_other_data() -> None:
    """Every row, object, version and file is the same as before; also after checks that were killed half way."""
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
    # Named as smoke's are, with somebody's work or files in them: they are looked at and left alone.
    assert told.count("was kept: it contains what no check created") == 2, told
