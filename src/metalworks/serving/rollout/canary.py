"""When a canary takes all requests, and when none: judged on what the HTTP processes count while it is tried.

Standard library alone, as the supervisor that asks.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

from metalworks.contracts import CanaryVerdict, StatsFile, stats_file
from metalworks.serving.settings import CanaryRules
from metalworks.serving.telemetry.latency import BUCKETS, STEP, quantile

MIN_FOR_ERRORS = 20
"""Requests from which on a share of errors says something."""
ERRORS_CERTAIN = 5
"""Errors of the canary from which on it is withdrawn without waiting for more."""
CHANCE = 3.0
"""Standard deviations of the difference in refused requests that are none."""


@dataclass(frozen=True)
class _Counts:
    """Requests that failed (5xx but for full queues), those and refused ones (4xx), and latencies by bucket.

    Callers' own mistakes are among the refused ones, but so is whatever a model raises: MLflow answers that with 400.
    """

    failed: int
    wrong: int
    buckets: tuple[int, ...]

    @property
    def count(self) -> int:
        return sum(self.buckets)

    def since(self, before: _Counts) -> _Counts:
        gained = (now - then for now, then in zip(self.buckets, before.buckets, strict=True))
        return _Counts(self.failed - before.failed, self.wrong - before.wrong, tuple(gained))


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

    def verdict(self, rules: CanaryRules, seconds: float | None = None) -> CanaryVerdict | None:
        """Return {verdict: promote or withdraw, reason}; None while it is too early to say.

        `seconds` is how long the trial has lasted, by the clock unless given.
        """
        if seconds is None:
            seconds = time.monotonic() - self._began
        theirs, ours = (now.since(before) for now, before in zip(self._now(), self._before, strict=True))
        count = ours.count
        if count < MIN_FOR_ERRORS:
            return None
        early = count < rules.min_requests or seconds < rules.min_seconds or not theirs.count
        share, base = ours.failed / count, theirs.failed / max(1, theirs.count)
        worse, errors, word = share > base + rules.max_error_rate_increase, ours.failed, "failed"
        if not worse and theirs.count:
            share, base = ours.wrong / count, theirs.wrong / theirs.count
            of_all = (ours.wrong + theirs.wrong) / (count + theirs.count)
            # Callers' mistakes do not come evenly.
            chance = CHANCE * math.sqrt(of_all * (1 - of_all) * (1 / count + 1 / theirs.count))
            worse, errors = share > base + rules.max_error_rate_increase + chance, ours.wrong
            word = "were refused or failed"
        if worse and (errors >= ERRORS_CERTAIN or not early):
            reason = f"{errors} of its {count} requests {word} ({share:.1%}), of the champion's {base:.1%}"
            return {"verdict": "withdraw", "reason": reason}
        if early:
            return None
        mine, others = quantile(ours.buckets, 0.95), quantile(theirs.buckets, 0.95)
        latency = f"95 of 100 requests took it at most {mine * 1000:.1f} ms, the champion {others * 1000:.1f} ms"
        # Latencies are known to a bucket: less than one bucket is no difference.
        if mine > others * max(rules.max_latency_ratio, STEP) * 1.001:
            return {"verdict": "withdraw", "reason": latency}
        return {
            "verdict": "promote",
            "reason": f"{count} requests in {seconds:.0f} s, {ours.failed / count:.1%} failed; {latency}",
        }


def _counts(runtime: Path, role: str, version: str) -> _Counts:
    """Return what all processes counted of a version in a role."""
    failed, wrong, buckets = 0, 0, [0] * BUCKETS
    for file in runtime.glob(stats_file("*")):
        stats: StatsFile = json.loads(file.read_text())
        for series in stats["series"]:
            if (series["role"], series["version"]) != (role, version):
                continue
            for status, n in series["statuses"].items():
                failed += n if status[0] == "5" and status != "503" else 0
                wrong += n if status[0] != "2" and status != "503" else 0
            buckets = [a + b for a, b in zip(buckets, series["buckets"], strict=True)]
    return _Counts(failed, wrong, tuple(buckets))
