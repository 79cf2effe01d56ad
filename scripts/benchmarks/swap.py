"""Measure how much slower responses are while a new version comes into service (`make bench-swap`).

A service on this machine gets requests at a constant rate while a version is checked, loaded and replaces its
predecessor, several times. The figure is a ratio of 99th percentiles of latency: from the moment that the version is
requested until it answers, to the seconds before. The verdict is in build/bench-swap.json; the exit code is 0, or 1 if
a median exceeds its target or a request failed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scripts.benchmarks.serving import models
from scripts.common import BUILD, ProblemError, end, write_json
from scripts.inference.constant_load import JSON, Load, Request
from scripts.inference.serve_model import served, version, wait_until_serving, want

VERDICT = BUILD / "bench-swap.json"
CONNECTIONS, PER_SECOND = 8, 100
SWAPS, CALM_SECONDS = 3, 15.0
MAY_BE = 2.0
"""Target for the median of the ratios."""


def measure(name: str) -> dict[str, Any]:
    """Return the figures of one model: milliseconds, ratios, failed requests."""
    model = models.load(name)
    split = {"columns": model.columns, "data": [model.row]}
    swaps: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="swap-") as at:
        folder = Path(at)
        with served(folder, model.folder, workers=1) as (service, port):
            wait_until_serving(service, folder, "1")
            request = Request(JSON, json.dumps({"dataframe_split": split}).encode())
            load = Load(port, [[request]] * CONNECTIONS, PER_SECOND)
            for number in range(2, 2 + SWAPS):
                began = time.monotonic()
                time.sleep(CALM_SECONDS)  # the baseline
                wanted = time.monotonic()
                want(folder, version(folder, str(number), model.folder))
                there = wait_until_serving(service, folder, str(number))
                before, during = load.percentile(began, wanted), load.percentile(wanted, there)
                swaps.append({"seconds": there - wanted, "before_ms": before * 1000, "during_ms": during * 1000})
                print(
                    f"{name:<8} in service after {there - wanted:4.1f} s; p99 {before * 1000:6.2f} ms before, "
                    f"{during * 1000:6.2f} ms during: {during / before:.2f} times"
                )
            load.end()
    ratio = statistics.median(each["during_ms"] / each["before_ms"] for each in swaps)
    return {"ratio": round(ratio, 2), "swaps": swaps, "requests": len(load.answers), "failed": load.wrong}


def main() -> int:
    """Measure, print the results, and save them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(models.KINDS), choices=list(models.KINDS), metavar="MODEL")
    arguments = parser.parse_args()
    found = {name: measure(name) for name in arguments.only}
    ok = all(each["ratio"] <= MAY_BE and not each["failed"] for each in found.values())
    write_json(VERDICT, {"ok": ok, "may_be": MAY_BE, "per_second": PER_SECOND, "models": found})
    for name, each in found.items():
        print(f"{name:<8} {each['ratio']:.2f} times; of {each['requests']} requests, {len(each['failed'])} failed")
    print(f"bench-swap: {'ok' if ok else 'FAILED'}")
    return 0 if ok else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ProblemError as error:
        end(error)
