"""Latencies as counts per bucket, from which percentiles are computed. Imports the standard library alone."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

SMALLEST = 50e-6
"""Upper bound of the first bucket, in seconds; each next bound is larger by the factor STEP."""
PER_DOUBLING = 4
BUCKETS = 4 * 21
STEP = 2 ** (1 / PER_DOUBLING)


def bound(bucket: int) -> float:
    """Return the upper bound of a bucket, in seconds."""
    return float(SMALLEST * STEP**bucket)


_BOUNDS = [bound(bucket) for bucket in range(BUCKETS - 1)]  # the last bucket takes whatever is longer


def bucket_of(seconds: float) -> int:
    """Return the bucket that a latency is counted in."""
    return bisect_left(_BOUNDS, seconds)


def quantile(buckets: Sequence[int], share: float) -> float:
    """Return an upper bound, in seconds, of the latency that this share of the requests did not exceed."""
    left = share * sum(buckets)
    for bucket, count in enumerate(buckets):
        left -= count
        if left <= 0:
            return bound(bucket)
    return bound(BUCKETS - 1)
