"""Decides when a canary is promoted or withdrawn, from the counts of the worker processes during its trial.

Imports the standard library alone, like the supervisor.
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
"""Fewer requests than this say nothing about a share of errors."""
ERRORS_CERTAIN = 5
"""With this many errors, a canary that is worse is withdrawn before min_requests and min_seconds."""
CHANCE = 3.0
"""A difference in refused requests within this many standard deviations is taken for chance."""


@dataclass(frozen=True)
class _Counts:
    """Requests of one version: failed, unsuccessful, and latencies by bucket.

    `failed` has responses of 5xx, but not 503 for full queues; `wrong` adds those of 4xx. These are not only callers'
    mistakes: MLflow responds with 400 to whatever a model raises.
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
    """A comparison of canary and champion by the requests from its start."""

    def __init__(self, runtime: Path, champion: str, canary: str) -> None:
        """Begin; `runtime` is the folder with the counts of the worker processes."""
        self.versions = (champion, canary)
        self._runtime, self._began = runtime, time.monotonic()
        self._before = self._now()

    def _now(self) -> tuple[_Counts, _Counts]:
        champion, canary = self.versions
        return _counts(self._runtime, "champion", champion), _counts(self._runtime, "canary", canary)

    def verdict(self, rules: CanaryRules, seconds: float | None = None) -> CanaryVerdict | None:
        """Return {verdict: promote or withdraw, reason}; None while it is too early.

        `seconds`: how long the trial has lasted; by default, measured.
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
            # Callers' mistakes are not spread evenly over the versions.
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
        # Latencies are known only to a bucket, so one bucket is no difference.
        if mine > others * max(rules.max_latency_ratio, STEP) * 1.001:
            return {"verdict": "withdraw", "reason": latency}
        return {
            "verdict": "promote",
            "reason": f"{count} requests in {seconds:.0f} s, {ours.failed / count:.1%} failed; {latency}",
        }


def _counts(runtime: Path, role: str, version: str) -> _Counts:
    """Return the counts of a version in a role, summed over all worker processes."""
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
