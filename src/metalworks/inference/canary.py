"""When a canary takes all requests, and when none: judged on what the HTTP processes counted.

Standard library alone, as the supervisor that asks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metalworks.inference.settings import Canary

MIN_FOR_ERRORS = 20
"""Requests from which on a share of errors says something."""
SMALLEST, PER_DOUBLING = 50e-6, 4
"""Buckets of latency, as the module stats has them."""
ERRORS_CERTAIN = 5
"""Errors of the canary from which on it is withdrawn without waiting for more."""


def verdict(runtime: Path, champion: str, canary: str, rules: Canary, seconds: float) -> dict[str, Any] | None:
    """Return {verdict: promote or withdraw, reason}; None while it is too early to say.

    `seconds` is how long the canary has served.
    """
    theirs, ours = _counts(runtime, "champion", champion), _counts(runtime, "canary", canary)
    count = sum(ours[1])
    if count < MIN_FOR_ERRORS:
        return None
    errors, base = ours[0] / count, theirs[0] / max(1, sum(theirs[1]))
    if ours[0] >= ERRORS_CERTAIN and errors > base + rules.max_error_rate_increase:
        return {
            "verdict": "withdraw",
            "reason": f"{ours[0]} of its {count} requests failed ({errors:.1%}), of the champion's {base:.1%}",
        }
    if count < rules.min_requests or seconds < rules.min_seconds or not sum(theirs[1]):
        return None
    mine, others = _quantile(ours[1], 0.95), _quantile(theirs[1], 0.95)
    latency = f"95 of 100 requests took it at most {mine * 1000:.1f} ms, the champion {others * 1000:.1f} ms"
    if errors > base + rules.max_error_rate_increase:
        return {"verdict": "withdraw", "reason": f"{errors:.1%} of its requests failed, of the champion's {base:.1%}"}
    # One bucket of the counts is a factor of 1.19: less than that is no difference.
    if mine > others * max(rules.max_latency_ratio, 2 ** (1 / PER_DOUBLING)) * 1.001:
        return {"verdict": "withdraw", "reason": latency}
    return {"verdict": "promote", "reason": f"{count} requests in {seconds:.0f} s, {errors:.1%} failed; {latency}"}


def _counts(runtime: Path, role: str, version: str) -> tuple[int, list[int]]:
    """Return errors and latencies (by bucket) of a version in a role, of all processes."""
    errors, buckets = 0, [0] * 200
    for file in runtime.glob("stats-*.json"):
        for series in json.loads(file.read_text())["series"]:
            if (series["role"], series["version"]) != (role, version):
                continue
            errors += sum(n for status, n in series["statuses"].items() if status[0] == "5" and status != "503")
            for i, count in enumerate(series["buckets"]):
                buckets[i] += count
    return errors, buckets


def _quantile(buckets: list[int], share: float) -> float:
    left = share * sum(buckets)
    for bucket, count in enumerate(buckets):
        left -= count
        if left <= 0:
            return float(SMALLEST * 2 ** (bucket / PER_DOUBLING))
    return float("inf")
