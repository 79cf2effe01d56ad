"""The outcome of a check."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

MARK = "smoke-result "


class NotApplicable(Exception):
    """There is nothing to check; the text says why."""


class Fault(Exception):
    """What is wrong, and the sentence that says what mends it."""

    def __init__(self, wrong: str, mend: str) -> None:
        """Keep both as one text."""
        super().__init__(f"{wrong}. {mend}.")


def judged(name: str, check: Callable[[], str]) -> dict[str, Any]:
    """Return the verdict of a check."""
    start = time.monotonic()
    verdict: dict[str, Any] = {"name": name, "ok": True, "skipped": False}
    try:
        verdict["detail"] = check()
    except NotApplicable as reason:
        verdict |= {"skipped": True, "detail": str(reason)}
    except Fault as fault:
        verdict |= {"ok": False, "detail": str(fault)}
    except Exception as error:
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        verdict |= {"ok": False, "detail": f"the check itself failed: {words}. Report it with this text."}
    return verdict | {"seconds": round(time.monotonic() - start, 3)}
