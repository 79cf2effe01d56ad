"""When a canary takes all requests, and when none: judged on what the HTTP processes count while it is tried.

Standard library alone, as the supervisor that asks.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalworks.inference.latency import BUCKETS, STEP, quantile
from metalworks.inference.settings import Canary

MIN_FOR_ERRORS = 20
"""Requests from which on a share of errors says something."""
ERRORS_CERTAIN = 5
"""Errors of the canary from which on it is withdrawn without waiting for more."""
CHANCE = 3.0
"""Standard deviations of the champion's errors among so many requests that are no difference."""


@dataclass(frozen=True)
class _Counts:
    """Requests that were answered otherwise than by 2xx, but for full queues, and latencies by bucket.

    MLflow answers 400 whatever a model raises. Callers' own mistakes are among them, and as many for either version.
    """

    errors: int
    buckets: tuple[int, ...]

    @property
    def count(self) -> int:
        return sum(self.buckets)

    def since(self, before: _Counts) -> _Counts:
        gained = (now - then for now, then in zip(self.buckets, before.buckets, strict=True))
        return _Counts(self.errors - before.errors, tuple(gained))


class Trial:
    """A canary beside a champion, from now on: what either did before is not compared."""

    def __init__(self, runtime: Path, champion: str, canary: str) -> None:
        """Begin; `runtime` is the folder in which the HTTP processes leave their counts."""
        self.versions = (champion, canary)
        self._runtime, self._began = runtime, time.monotonic()
        self._before = self._now()

    def _now(self) -> tuple[_Counts, _Counts]:
        champion, canary = self.versions
        return _counts(self._runtime, "champion", champion), _counts(self._runtime, "canary", canary)

    def verdict(self, rules: Canary, seconds: float | None = None) -> dict[str, Any] | None:
        """Return {verdict: promote or withdraw, reason}; None while it is too early to say.

        `seconds` is how long the trial has lasted, by the clock unless given.
        """
        if seconds is None:
            seconds = time.monotonic() - self._began
        theirs, ours = (now.since(before) for now, before in zip(self._now(), self._before, strict=True))
        count = ours.count
        if count < MIN_FOR_ERRORS:
            return None
        errors, base = ours.errors / count, theirs.errors / max(1, theirs.count)
        chance = CHANCE * math.sqrt(base * (1 - base) / count)  # callers' mistakes do not come evenly
        worse = errors > base + rules.max_error_rate_increase + chance
        early = count < rules.min_requests or seconds < rules.min_seconds or not theirs.count
        if worse and (ours.errors >= ERRORS_CERTAIN or not early):
            reason = f"{ours.errors} of its {count} requests failed ({errors:.1%}), of the champion's {base:.1%}"
            return {"verdict": "withdraw", "reason": reason}
        if early:
            return None
        mine, others = quantile(ours.buckets, 0.95), quantile(theirs.buckets, 0.95)
        latency = f"95 of 100 requests took it at most {mine * 1000:.1f} ms, the champion {others * 1000:.1f} ms"
        # Latencies are known to a bucket: less than one bucket is no difference.
        if mine > others * max(rules.max_latency_ratio, STEP) * 1.001:
            return {"verdict": "withdraw", "reason": latency}
        return {"verdict": "promote", "reason": f"{count} requests in {seconds:.0f} s, {errors:.1%} failed; {latency}"}


def _counts(runtime: Path, role: str, version: str) -> _Counts:
    """Return what all processes counted of a version in a role."""
    errors, buckets = 0, [0] * BUCKETS
    for file in runtime.glob("stats-*.json"):
        for series in json.loads(file.read_text())["series"]:
            if (series["role"], series["version"]) != (role, version):
                continue
            errors += sum(n for status, n in series["statuses"].items() if status[0] != "2" and status != "503")
            buckets = [a + b for a, b in zip(buckets, series["buckets"], strict=True)]
    return _Counts(errors, tuple(buckets))
