"""The outcome of a check."""

from __future__ import annotations

MARK = "smoke-result "


class NotApplicable(Exception):
    """There is nothing to check; the text says why."""


class Fault(Exception):
    """What is wrong, and the sentence that says what mends it."""

    def __init__(self, wrong: str, mend: str) -> None:
        """Keep both as one text."""
        super().__init__(f"{wrong}. {mend}.")
