"""Deadlines for steps that delay a run."""

from __future__ import annotations

import math
import time


class Late(Exception):
    """A result was not ready in time; it may be later."""


class Deadline:
    """A point in time; `at` can be moved while others use it."""

    def __init__(self, seconds: float = math.inf) -> None:
        """Begin now."""
        self.at = time.monotonic() + seconds
        self.quick = math.isfinite(seconds)
        """Whether somebody waits, so that slow steps should not be started."""

    @property
    def left(self) -> float | None:
        """Return the seconds left, as `timeout=` takes them."""
        return None if math.isinf(self.at) else max(0.0, self.at - time.monotonic())

    def check(self) -> None:
        """Raise Late if it has passed."""
        if time.monotonic() > self.at:
            raise Late
