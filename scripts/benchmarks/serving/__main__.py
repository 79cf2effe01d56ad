"""Measure the inference server and its peers, print the tables, and write build/bench-serving.json.

Exits with 0, 1 (a target was missed or not measured) or 2 (nothing could be measured).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.benchmarks.measured import judged, machine, told
from scripts.benchmarks.serving import models, report
from scripts.benchmarks.serving.measure import CONNECTIONS, Cell, cells
from scripts.benchmarks.serving.systems import SYSTEMS, install, versions
from scripts.common import BUILD, ROOT, ProblemError, apt_install, machine_lock, write_json

VERDICT = BUILD / "bench-serving.json"
PAGE = ROOT / "docs/serving-benchmark.md"
PICTURE = ROOT / "docs/pictures/serving-benchmark.svg"
OK, MISSED, UNKNOWN = 0, 1, 2


def chosen(only: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of model and system with the requested names."""
    known = {*models.KINDS, *SYSTEMS}
    if unknown := [name for name in only if name not in known]:
        raise ProblemError(f"--only: unknown name {', '.join(unknown)}; the names are {', '.join(sorted(known))}")
    of_models = [name for name in only if name in models.KINDS] or list(models.KINDS)
    of_systems = [name for name in only if name in SYSTEMS] or list(SYSTEMS)
    return [(model, name) for model in of_models for name in of_systems if model in SYSTEMS[name].models]


def measured_on(rounds: int, seconds: float) -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        **machine(),
        "rounds": rounds,
        "seconds": seconds,
        "wrk": subprocess.run(["wrk", "--version"], capture_output=True, text=True, check=False).stdout.split()[1],
        "peers": versions(),
        # Some sites set these for an old OpenBLAS; all systems get the same values.
        "variables": {name: value for name, value in os.environ.items() if name.startswith(("OPENBLAS_", "OMP_"))},
    }


def measure(rounds: int, seconds: float, pairs: list[tuple[str, str]], console: Console) -> list[Cell]:
    """Return all cells; each round measures every system, in alternating order."""
    made = {model: models.load(model) for model in dict.fromkeys(model for model, _ in pairs)}
    for environment in dict.fromkeys(SYSTEMS[name].environment for _, name in pairs):
        if environment:
            install(environment)
    seen: list[Cell] = []
    for turn in range(rounds):
        for model, name in pairs if turn % 2 == 0 else reversed(pairs):
            for cell in cells(name, SYSTEMS[name], made[model], seconds, CONNECTIONS):
                seen.append(cell)
                problem = cell.problem.partition("\n")[0]
                numbers = f"{cell.per_second:>9,.0f} req/s {cell.p50_ms:>8.2f} ms p50 {cell.p99_ms:>8.2f} ms p99"
                label = f"{turn + 1}/{rounds} {model:<8} {name:<13} c{cell.connections:<3}"
                console.print(f"{label} {problem or numbers}", highlight=False, markup=False, soft_wrap=True)
    return seen


def show(found: dict[report.Key, Cell], numbers: report.Figures, console: Console) -> None:
    """Print the tables and the targets."""
    for model, title in report.TITLES.items():
        lines = report.rows(found, model)
        if lines:
            table = Table(*report.HEAD, title=title, title_justify="left")
            for column in table.columns[1:]:
                column.justify = "right"
            for line in lines:
                table.add_row(*line)
            console.print(table)
    console.print(told(judged(report.TARGETS, numbers)), highlight=False, markup=False)


def main() -> int:
    """Measure, print the results, and save them."""
    parser = argparse.ArgumentParser(prog="bench-serving", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds for each system (default: 3)")
    parser.add_argument("--seconds", type=float, default=10, help="seconds of load in each cell (default: 10)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="measure only these models and systems")
    parser.add_argument("--docs", action="store_true", help="update the page and the picture in docs/")
    options = parser.parse_args()
    if options.docs and options.only:
        parser.error("the page shows everything: --docs without --only")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(UNKNOWN))  # so that the running server is stopped
    console = Console(width=max(120, Console().width))
    VERDICT.unlink(missing_ok=True)
    try:
        pairs = chosen(options.only)
        if not shutil.which("wrk"):
            apt_install("wrk", reason="Making the load")
        on = measured_on(options.rounds, options.seconds)
        with machine_lock("bench-serving"):
            seen = measure(options.rounds, options.seconds, pairs, console)
    except ProblemError as error:
        print(error, file=sys.stderr)
        return UNKNOWN
    found = report.medians(seen)
    numbers = report.figures(found)
    targets = judged(report.TARGETS, numbers)
    problems = sorted(
        {f"{cell.model} {cell.system} c{cell.connections}: {cell.problem}" for cell in seen if cell.problem}
    )
    ok = all(target["ok"] for target in targets)
    verdict = {
        "ok": ok,
        "figures": numbers,
        "targets": targets,
        "problems": problems,
        "measured_on": on,
        "cells": [dataclasses.asdict(cell) for cell in seen],
    }
    write_json(VERDICT, verdict)
    if options.docs:
        PAGE.write_text(report.page(found, numbers, on))
        report.plot(found, PICTURE)
    show(found, numbers, console)
    if not found:
        return UNKNOWN
    print(f"bench-serving: {'ok' if ok else 'FAILED'}" + f", {len(problems)} problems" * bool(problems))
    return OK if ok else MISSED


if __name__ == "__main__":
    raise SystemExit(main())
