"""Compare this commit's models, and the best one with the champion."""

from __future__ import annotations

from flights import registry


def compare() -> None:
    """Print the models, best first, and put the best one in the registry."""
    runs = registry.runs()
    if not runs:
        raise SystemExit("No model is recorded for this commit and data. Train first: `python -m flights train`.")
    print(f"{'model':<14}{'rmse':>9}{'mae':>9}{'r2':>9}")
    for run in runs:
        print(f"{run['name']:<14}{run['rmse']:>9.3f}{run['mae']:>9.3f}{run['r2']:>9.3f}")
    version = registry.promote()
    place = "is champion" if version["champion"] else "is not champion"
    print(f"Version {version['version']} ({version['model']}) {place}: {version['verdict']}")
