"""The counts of a worker process, and the metrics of a service.

Each worker process writes its counts to a file twice a second. So the process that gets a request for /metrics can add
up the counts of all, and a process that replaces another counts on from there.

To add a metric, count it in a field of Stats, add that field up in add_up, write its lines in render_metrics, and name
it in docs/inference.md ("Monitor it"); a test compares the two.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from metalworks.contracts import stats_file
from metalworks.serving.telemetry.latency import BUCKETS, PER_DOUBLING, bound, bucket_of

SIZES = tuple(2**i for i in range(15))
"""Upper bounds of the buckets for batch sizes, in rows."""


class Series(msgspec.Struct):
    """Requests that one version answered in one role by one executor."""

    role: str
    version: str
    executor: str
    statuses: dict[str, int] = msgspec.field(default_factory=dict)
    seconds: float = 0.0
    buckets: list[int] = msgspec.field(default_factory=lambda: [0] * BUCKETS)

    def observe(self, seconds: float, status: int) -> None:
        """Count a response."""
        key = str(status)
        try:
            self.statuses[key] += 1
        except KeyError:
            self.statuses[key] = 1
        self.seconds += seconds
        self.buckets[bucket_of(seconds)] += 1

    @property
    def count(self) -> int:
        """All responses."""
        return sum(self.buckets)

    def add(self, other: Series) -> None:
        """Add the counts of another series."""
        for status, count in other.statuses.items():
            self.statuses[status] = self.statuses.get(status, 0) + count
        self.seconds += other.seconds
        self.buckets = [a + b for a, b in zip(self.buckets, other.buckets, strict=True)]


class Stats(msgspec.Struct):
    """The counts of one worker process."""

    series: list[Series] = msgspec.field(default_factory=list)
    kinds: dict[str, int] = msgspec.field(default_factory=dict)
    """Errors by kind."""
    batch_rows: list[int] = msgspec.field(default_factory=lambda: [0] * (len(SIZES) + 1))
    batched_rows: int = 0
    shadow: dict[str, float] = msgspec.field(default_factory=dict)
    """Copied requests by outcome: compared, differing (of these), answered (in a form that is not compared), dropped,
    failed. `largest` is the largest difference."""
    log: dict[str, int] = msgspec.field(default_factory=dict)
    """Rows of the prediction log: written, dropped."""
    queue: int = 0
    in_flight: dict[str, int] = msgspec.field(default_factory=dict)
    """Requests that a version is answering, by its id."""
    routed: int = 0
    """Revision of the route that this process follows."""
    unloadable: dict[str, str] = msgspec.field(default_factory=dict)
    """Versions of a newer route that this process cannot load: id → reason."""

    def of(self, role: str, version: str, executor: str) -> Series:
        """Return the series; create it if there is none."""
        for each in self.series:
            if (each.role, each.version, each.executor) == (role, version, executor):
                return each
        self.series.append(Series(role, version, executor))
        return self.series[-1]

    def error(self, kind: str) -> None:
        """Count an error of a kind."""
        self.kinds[kind] = self.kinds.get(kind, 0) + 1

    def failed(self, status: int) -> None:
        """Count an error response to a request for a prediction, by its status."""
        kinds = {413: "too_much", 503: "queue_full", 504: "timeout"}
        self.error(kinds.get(status, "refused" if status < 500 else "failed"))

    def batch(self, rows: int) -> None:
        """Count a batch."""
        self.batched_rows += rows
        self.batch_rows[(rows - 1).bit_length() if rows <= SIZES[-1] else len(SIZES)] += 1


def read_stats(folder: Path) -> Iterator[Stats]:
    """Yield the counts of every worker process."""
    for file in sorted(folder.glob(stats_file("*"))):
        yield msgspec.json.decode(file.read_bytes(), type=Stats)


def add_up(all_of: Iterable[Stats]) -> Stats:
    """Return the sum of all counts."""
    result = Stats()
    kinds: dict[str, int] = defaultdict(int)
    for each in all_of:
        for series in each.series:
            result.of(series.role, series.version, series.executor).add(series)
        for kind, count in each.kinds.items():
            kinds[kind] += count
        result.batch_rows = [a + b for a, b in zip(result.batch_rows, each.batch_rows, strict=True)]
        result.batched_rows += each.batched_rows
        for name, value in each.shadow.items():
            known = result.shadow.get(name, 0.0)
            result.shadow[name] = max(known, value) if name == "largest" else known + value
        for name, count in each.log.items():
            result.log[name] = result.log.get(name, 0) + count
        result.queue += each.queue
    result.kinds = dict(kinds)
    return result


def write_stats(stats: Stats, file: Path) -> None:
    """Replace the file of counts in one step."""
    new = file.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(stats))
    new.replace(file)


def render_metrics(stats: Stats, info: list[dict[str, Any]], refused: int, set_aside: int) -> str:
    """Return the counts in Prometheus' text format; `info` has the labels of each version in service."""
    out = _Text()
    out.head("requests_total", "counter", "Answers, by role and version, by what answered, by status.")
    for each in stats.series:
        for status, count in sorted(each.statuses.items()):
            out.line("requests_total", _labels(each, status=status), count)
    out.head("request_seconds", "histogram", "Seconds from a complete request to its response.")
    for each in stats.series:
        running = 0
        for bucket, count in enumerate(each.buckets):
            running += count
            if bucket % PER_DOUBLING == 0:
                out.line("request_seconds_bucket", _labels(each, le=f"{bound(bucket):g}"), running)
        out.line("request_seconds_bucket", _labels(each, le="+Inf"), each.count)
        out.line("request_seconds_sum", _labels(each), each.seconds)
        out.line("request_seconds_count", _labels(each), each.count)
    out.head("batch_rows", "histogram", "Rows that went through the model together.")
    running = 0
    for size, count in zip((*SIZES, None), stats.batch_rows, strict=True):
        running += count
        out.line("batch_rows_bucket", {"le": "+Inf" if size is None else str(size)}, running)
    out.line("batch_rows_sum", {}, stats.batched_rows)
    out.line("batch_rows_count", {}, running)
    out.head("queue_requests", "gauge", "Requests that wait for the model.")
    out.line("queue_requests", {}, stats.queue)
    out.head("errors_total", "counter", "Requests without a prediction, by kind.")
    for kind, count in sorted(stats.kinds.items()):
        out.line("errors_total", {"kind": kind}, count)
    out.head("version_info", "gauge", "Versions in service, and what runs them.")
    for labels in info:
        out.line("version_info", labels, 1)
    out.head("refused_versions", "gauge", "Versions that were to be served and are not.")
    out.line("refused_versions", {}, refused)
    out.head("shadow_requests_total", "counter", "Requests copied to the shadow version, by what became of them.")
    for outcome in ("compared", "differing", "answered", "failed", "dropped"):
        out.line("shadow_requests_total", {"outcome": outcome}, int(stats.shadow.get(outcome, 0)))
    out.head("shadow_difference_max", "gauge", "Largest difference between a prediction and the shadow's.")
    out.line("shadow_difference_max", {}, stats.shadow.get("largest", 0.0))
    out.head("log_rows_total", "counter", "Rows for the prediction log.")
    for outcome in ("written", "dropped"):
        out.line("log_rows_total", {"outcome": outcome}, stats.log.get(outcome, 0))
    out.head("log_set_aside_total", "counter", "Requests that fit no file of the prediction log.")
    out.line("log_set_aside_total", {}, set_aside)
    return out.text()


def _labels(series: Series, **more: str) -> dict[str, str]:
    return {"role": series.role, "version": series.version, "executor": series.executor, **more}


class _Text:
    PREFIX = "metalworks_inference_"

    def __init__(self) -> None:
        self._lines: list[str] = []

    def head(self, name: str, kind: str, help_text: str) -> None:
        self._lines += [f"# HELP {self.PREFIX}{name} {help_text}", f"# TYPE {self.PREFIX}{name} {kind}"]

    def line(self, name: str, labels: dict[str, Any], value: float) -> None:
        escaped = ",".join(f'{key}="{_escape(str(text))}"' for key, text in labels.items())
        self._lines.append(f"{self.PREFIX}{name}{{{escaped}}} {value}" if escaped else f"{self.PREFIX}{name} {value}")

    def text(self) -> str:
        return "\n".join(self._lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
