"""Measure how fast MLflow's client moves artifacts on a dev host, beside the object store alone.

Prints a table and writes build/bench-artifacts.json. Exits with 0, 1 (too slow) or 2 (could not measure).
"""

from __future__ import annotations

import statistics
from typing import Any

from scripts.benchmarks import on_host
from scripts.benchmarks.artifacts_host import SIZES
from scripts.benchmarks.measured import Target, judged, told
from scripts.common import BUILD, write_json

VERDICT = BUILD / "bench-artifacts.json"
TRANSFERS = [f"{what}_{way}" for what in SIZES for way in ("up", "down")]
# A single small file is shown but has no target: MLflow's client asks its server about the run, the folder and the
# run's models at each download, which takes longer than 5 MB do.
TARGETS = [Target(f"{each}_vs_direct_s3", at_least=0.7) for each in TRANSFERS if not each.startswith("one_file")]


def figures(seen: dict[str, list[float]]) -> dict[str, float]:
    """Return the medians in seconds, and the speed beside the store alone."""
    found: dict[str, float] = {}
    for each in TRANSFERS:
        direct, mlflow = (statistics.median(seen[f"{each} {how}"]) for how in ("direct", "mlflow"))
        found |= {f"{each}_direct_s3_seconds": direct, f"{each}_mlflow_seconds": mlflow}
        found[f"{each}_vs_direct_s3"] = direct / mlflow
    return {name: round(value, 3) for name, value in found.items()}


def table(found: dict[str, float]) -> str:
    """Return a table of all transfers."""
    lines = [f"{'medians':<20}{'direct, s':>12}{'MLflow, s':>12}{'speed':>8}"]
    for each in TRANSFERS:
        values = (found[f"{each}_{part}"] for part in ("direct_s3_seconds", "mlflow_seconds", "vs_direct_s3"))
        lines.append("{:<20}{:>12.2f}{:>12.2f}{:>8.2f}".format(each.replace("_", " "), *values))
    return "\n".join(lines)


def report(seen: dict[str, list[float]], measured_on: dict[str, Any]) -> bool:
    """Print and save the results; tell whether the targets are met."""
    numbers = figures(seen)
    judgements = judged(TARGETS, numbers)
    ok = all(each["ok"] for each in judgements)
    write_json(VERDICT, {"ok": ok, "targets": judgements, "figures": numbers, "measured_on": measured_on})
    print(table(numbers), told(judgements), sep="\n\n")
    return ok


def main() -> int:
    """Measure, and return the exit code."""
    return on_host.run("bench_artifacts", __doc__, VERDICT, report)


if __name__ == "__main__":
    raise SystemExit(main())
