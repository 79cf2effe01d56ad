"""What a request may have. The standard library alone: the service's main process, which is to be small, reads it."""

from __future__ import annotations

from dataclasses import dataclass

TEXT_PER_CELL = 32
"""Characters that texts may take in memory, for each value of a request: in an array all are as long as the longest."""


class TooMuchError(Exception):
    """A request is more than the service takes; the message says what of it, and which option says so."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of each a request may have."""

    rows: int = 100_000
    columns: int = 10_000
    cells: int = 2_000_000
    depth: int = 32

    def check(self, rows: int = 0, columns: int = 0, cells: int = 0, depth: int = 0) -> None:
        """Raise TooMuchError when any is beyond its limit."""
        if rows > self.rows:
            raise self._error("rows", "rows", self.rows)
        if columns > self.columns:
            raise self._error("columns", "columns", self.columns)
        if cells > self.cells:
            raise self._error("values", "cells", self.cells)
        if depth > self.depth:
            raise self._error("lists or objects in one another", "depth", self.depth)

    def check_texts(self, characters: int) -> None:
        """Raise TooMuchError when texts take more room than the values of a request may."""
        if characters > TEXT_PER_CELL * self.cells:
            raise TooMuchError(
                f"The request's texts take room for more than {TEXT_PER_CELL * self.cells} characters in memory, "
                f"{TEXT_PER_CELL} for each of max_cells, an option of this service"
            )

    @staticmethod
    def _error(what: str, option: str, limit: int) -> TooMuchError:
        return TooMuchError(f"The request has more than {limit} {what}, this service's limit: its option max_{option}")
