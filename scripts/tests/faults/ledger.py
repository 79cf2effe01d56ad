"""The ledger of acknowledged writes, and what it says about those that are found again."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Write = dict[str, Any]


class Ledger:
    """Acknowledged writes, in a file with a line of JSON each. A write counts once its line is on the disk."""

    def __init__(self, path: Path) -> None:
        """Begin an empty ledger."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w")
        self._lock = threading.Lock()
        self._writes: list[Write] = []

    def add(self, write: Write) -> None:
        """Keep a write."""
        with self._lock:
            self._file.write(json.dumps(write) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            self._writes.append(write)

    def writes(self) -> list[Write]:
        """Return all writes."""
        with self._lock:
            return list(self._writes)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def lost(writes: list[Write], missing: Mapping[str, str]) -> list[str]:
    """Return a line for each write that is missing; `missing` says why, by its number in the list."""
    return [f"{writes[int(number)]['kind']} {writes[int(number)]['id']}: {why}" for number, why in missing.items()]
