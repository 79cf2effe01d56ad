"""Lines for the journal, with the level that it shows them at."""

from __future__ import annotations

import logging
import os

_LEVELS = {logging.ERROR: "<3>", logging.WARNING: "<4>", logging.INFO: "<6>", logging.DEBUG: "<7>"}


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = _LEVELS.get(record.levelno, "<6>")
        return "\n".join(f"{level}{line}" for line in super().format(record).splitlines())


def log_to_journal() -> None:
    """Write what is logged to standard error; for systemd, each line with its level."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter() if os.environ.get("JOURNAL_STREAM") else logging.Formatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
