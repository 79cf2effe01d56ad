"""How long something may take."""

from __future__ import annotations

import math
import time


class Late(Exception):
    """It was not ready in time; later it may be."""


class Deadline:
    """A point in time; `at` can be moved while others look at it."""

    def __init__(self, seconds: float = math.inf) -> None:
        """Begin now."""
        self.at = time.monotonic() + seconds
        self.quick = math.isfinite(seconds)
        """Somebody waits: what will not be ready in time need not be begun."""

    @property
    def left(self) -> float | None:
        """Return the seconds left, as `timeout=` takes them."""
        return None if math.isinf(self.at) else max(0.0, self.at - time.monotonic())

    def check(self) -> None:
        """Raise Late if it has passed."""
        if time.monotonic() > self.at:
            raise Late
