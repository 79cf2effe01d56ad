"""The decisions of retraining so far, as JSON and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flights import registry


def history(plot: Path | None) -> list[dict[str, Any]]:
    """Return one entry per version; write a picture if a file is given."""
    found = registry.history()
    if plot:
        from flights import plots  # slow to import

        plot.write_text(plots.over_months(found))
    return found
