"""Limits of a request's size. Imports the standard library alone, since the supervisor uses it."""

from __future__ import annotations

from dataclasses import dataclass

TEXT_PER_CELL = 32
"""Characters of text per value: in an array, each text takes as much memory as the longest."""


class TooMuchError(Exception):
    """A request exceeds a limit; the message names it and its option."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a request."""

    rows: int = 100_000
    columns: int = 10_000
    cells: int = 2_000_000
    depth: int = 32

    def check(self, rows: int = 0, columns: int = 0, cells: int = 0, depth: int = 0) -> None:
        """Raise TooMuchError if any number exceeds its limit."""
        if rows > self.rows:
            raise self._error("rows", "rows", self.rows)
        if columns > self.columns:
            raise self._error("columns", "columns", self.columns)
        if cells > self.cells:
            raise self._error("values", "cells", self.cells)
        if depth > self.depth:
            raise self._error("lists or objects in one another", "depth", self.depth)

    def check_texts(self, characters: int) -> None:
        """Raise TooMuchError if texts take too much memory."""
        if characters > TEXT_PER_CELL * self.cells:
            raise TooMuchError(
                f"The request's texts take room for more than {TEXT_PER_CELL * self.cells} characters in memory, "
                f"{TEXT_PER_CELL} for each of max_cells, an option of this service"
            )

    @staticmethod
    def _error(what: str, option: str, limit: int) -> TooMuchError:
        return TooMuchError(f"The request has more than {limit} {what}, this service's limit: its option max_{option}")
