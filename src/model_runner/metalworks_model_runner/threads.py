"""Chooses the number of OpenMP threads: for a few rows, one is often faster than all."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Ask = Callable[[Sequence[np.ndarray]], Any]

COUNTS = (1, 8, 64)
"""Numbers of rows that are measured; larger batches use all threads."""
SLOW_SECONDS = 0.1
"""A model that takes longer has work for all threads."""
TRIES = 5


class Threads:
    """Sets one thread for a few rows, and the library's own number for more."""

    def __init__(self) -> None:
        """Find the loaded libraries and their threads; without threadpoolctl, change nothing."""
        self.few = 0
        self._alone = False
        try:
            known = importlib.import_module("threadpoolctl").ThreadpoolController().select(user_api="openmp")
        except ImportError:  # it comes with scikit-learn, which mlflow-skinny does not need
            self._libraries = []
        else:
            self._libraries = [(each, each.num_threads) for each in known.lib_controllers if each.num_threads > 1]

    def measure(self, ask: Ask, rows: Sequence[np.ndarray]) -> None:
        """Measure up to how many rows `ask` is faster with one thread."""
        self.few = 0
        if not self._libraries:
            return
        for count in COUNTS:
            some = [each[:count] for each in rows]
            self._set(alone=False)
            if len(some[0]) < count or (many := _least(ask, some)) > SLOW_SECONDS:
                break
            self._set(alone=True)
            if _least(ask, some) > many:
                break
            self.few = count
        self._set(alone=False)

    def fit(self, rows: int) -> None:
        """Set the number of threads for this many rows."""
        if (alone := rows <= self.few) is not self._alone:
            self._set(alone=alone)

    def _set(self, *, alone: bool) -> None:
        self._alone = alone
        for library, most in self._libraries:
            library.set_num_threads(1 if alone else most)


def _least(ask: Ask, rows: Sequence[np.ndarray]) -> float:
    """Return the shortest time in seconds of several tries, or of one if that is slow."""
    best = float("inf")
    for _ in range(TRIES):
        began = time.perf_counter()
        ask(rows)
        best = min(best, time.perf_counter() - began)
        if best > SLOW_SECONDS:
            break
    return best
