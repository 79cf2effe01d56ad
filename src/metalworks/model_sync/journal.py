"""Logging for the journal, with systemd's priority prefixes."""

from __future__ import annotations

import logging
import os

_LEVELS = {logging.ERROR: "<3>", logging.WARNING: "<4>", logging.INFO: "<6>", logging.DEBUG: "<7>"}


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = _LEVELS.get(record.levelno, "<6>")
        return "\n".join(f"{level}{line}" for line in super().format(record).splitlines())


def log_to_journal() -> None:
    """Log to standard error; under systemd, prefix each line with its priority."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter() if os.environ.get("JOURNAL_STREAM") else logging.Formatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
