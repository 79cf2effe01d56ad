"""Measure how long a flow run takes to reach its first line, scheduled and immediate, compared with plain Prefect.

Prints a table and writes build/bench-flow.json. Exits with 0, 1 (too slow) or 2 (could not measure).
"""

from __future__ import annotations

import platform
import statistics
from typing import Any

from scripts.benchmarks import on_host
from scripts.common import BUILD, write_json

VERDICT = BUILD / "bench-flow.json"
ALLOWED_SECONDS = 2.0
"""From due to the flow's first line, besides the import of Prefect. A run at once is due when a worker next looks."""
ROWS = {
    "pending_after_due": "a worker takes it",
    "process_after_pending": "the worker starts a process",
    "python_after_process": "code and environment are in place",
    "running_after_python": "Prefect is imported, the run reported",
    "first_line_after_running": "the flow's first line",
    "start": "due to first line",
}
Seen = dict[str, list[dict[str, float]]]


def median(seen: Seen, kind: str, part: str) -> float:
    """Return the median of a part of the start over all runs of a kind."""
    return statistics.median(run[part] for run in seen[kind])


def figures(seen: Seen) -> dict[str, float]:
    """Return the verdict's figures: seconds, and the start compared with that of plain Prefect."""
    found = {f"{kind}_{part}_seconds": median(seen, kind, part) for kind in seen for part in (*ROWS, "import")}
    for way in ("ours", "bare"):
        taken = [run["start"] - run["pending_after_due"] for run in seen[f"{way}_at_once"]]
        found[f"{way}_at_once_taken_seconds"] = statistics.median(taken)
    found["start_vs_bare_prefect"] = found["bare_at_once_taken_seconds"] / found["ours_at_once_taken_seconds"]
    return {name: round(value, 3) for name, value in found.items()}


def fast_enough(found: dict[str, float]) -> bool:
    """Tell whether both kinds of runs start within the allowed time."""
    at_once = found["ours_at_once_taken_seconds"] - found["ours_at_once_import_seconds"]
    scheduled = found["ours_scheduled_start_seconds"] - found["ours_scheduled_import_seconds"]
    return max(at_once, scheduled) <= ALLOWED_SECONDS


def table(found: dict[str, float]) -> str:
    """Return a table of the medians of all parts; parts before the due time are negative."""
    kinds = ["ours_at_once", "bare_at_once", "ours_scheduled", "bare_scheduled"]
    lines = [f"{'seconds, medians':<40}" + "".join(f"{kind.replace('_', ' '):>16}" for kind in kinds)]
    for part, text in ROWS.items():
        lines.append(f"{text:<40}" + "".join(f"{found[f'{kind}_{part}_seconds']:>16.2f}" for kind in kinds))
    return "\n".join(lines)


def report(seen: Seen, measured_on: dict[str, Any]) -> bool:
    """Print and save the results; tell whether runs start soon enough."""
    numbers = figures(seen)
    ok = fast_enough(numbers)
    measured_on = {**measured_on, "controller": platform.platform()}
    write_json(VERDICT, {"ok": ok, "figures": numbers, "measured_on": measured_on})
    print(table(numbers))
    print(f"start_vs_bare_prefect {numbers['start_vs_bare_prefect']}: {'ok' if ok else 'TOO SLOW'}")
    return ok


def main() -> int:
    """Measure, and return the exit code."""
    return on_host.run("bench_flow", __doc__, VERDICT, report)


if __name__ == "__main__":
    raise SystemExit(main())
