"""Measure how long a flow run takes to reach its first line, scheduled and immediate, compared with plain Prefect.

Prints a table and writes build/bench-flow.json. Exits with 0, 1 (too slow) or 2 (could not measure).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from scripts.common import BUILD, ROOT, environment, failure, write_json

VERDICT = BUILD / "bench-flow.json"
ALLOWED_SECONDS = 2.0
"""From due to the flow's first line, besides the import of Prefect. A run at once is due when a worker next looks."""
OK, SLOW, UNKNOWN = 0, 1, 2
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


def measure(inventory: str, times: int) -> dict[str, Any]:
    """Return the measurements of the site's first worker host."""
    with tempfile.TemporaryDirectory() as folder:
        seen = Path(folder) / "seen.json"
        command = ["ansible-playbook", "-i", inventory, "playbooks/bench_flow.yml"]
        command += ["-e", f"bench_flow_times={times}", "-e", f"bench_flow_file={seen}"]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
        if done.returncode or not seen.exists():
            raise RuntimeError(failure(command, done.returncode, done.stderr + done.stdout, lines=20))
        found: dict[str, Any] = json.loads(seen.read_text())
        return found


def main() -> int:
    """Measure, print the results, and save them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inventory", "-i", default="inventory/lab", help="inventory of the site (default: the lab's)")
    parser.add_argument("--times", type=int, default=5, help="runs of each kind (default: 5)")
    options = parser.parse_args()
    VERDICT.unlink(missing_ok=True)
    try:
        found = measure(options.inventory, options.times)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return UNKNOWN
    numbers = figures(found["seen"])
    ok = fast_enough(numbers)
    measured_on = {"inventory": options.inventory, "host": found["host"], "runs_of_each": options.times}
    measured_on["controller"] = platform.platform()
    write_json(VERDICT, {"ok": ok, "figures": numbers, "measured_on": measured_on})
    print(table(numbers))
    print(f"start_vs_bare_prefect {numbers['start_vs_bare_prefect']}: {'ok' if ok else 'TOO SLOW'}")
    return OK if ok else SLOW


if __name__ == "__main__":
    raise SystemExit(main())
