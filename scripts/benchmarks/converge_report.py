"""Figures, tables and the picture of `make bench-converge`."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from scripts.benchmarks.measured import Target, judged, pyplot, save
from scripts.progress import ENDS, STARTS, Event

TARGETS = (
    Target("converged_5_hosts_seconds", at_most=35),
    Target("seconds_per_further_host", at_most=3),
    Target("join_8_hosts_seconds", at_most=120),
)
ELSEWHERE = "none"
"""Name for time outside roles: Ansible's start and end, facts, and tasks of plays."""


@dataclass
class Spent:
    """Seconds, and the number of tasks that took them."""

    seconds: float = 0.0
    tasks: int = 0


@dataclass
class Times:
    """Where the time of a run goes, from ansible-runner's events."""

    roles: defaultdict[str, Spent] = field(default_factory=lambda: defaultdict(Spent))
    """Seconds of the run while the role's task was the last to start; they add up to the whole run."""
    hosts: defaultdict[str, Spent] = field(default_factory=lambda: defaultdict(Spent))
    """Seconds from the start of a host's tasks to their results; they overlap with those of other hosts."""
    _role: str = ELSEWHERE
    _since: datetime | None = None

    def take(self, event: Event) -> None:
        """Process one event."""
        kind, data = event.get("event", ""), event.get("event_data") or {}
        if kind in STARTS or kind in ("playbook_on_play_start", "playbook_on_stats"):
            now = datetime.fromisoformat(event["created"])
            if self._since:
                self.roles[self._role].seconds += (now - self._since).total_seconds()
            self._since = now
            self._role = str(data.get("role") or ELSEWHERE) if kind in STARTS else ELSEWHERE
            self.roles[self._role].tasks += kind in STARTS
        elif kind in ENDS:
            host = self.hosts[str(data["host"])]
            host.seconds += data.get("duration") or 0.0
            host.tasks += 1

    def end(self, seconds: float) -> None:
        """Count the remaining seconds of a run: before its first play and after its last."""
        self.roles[ELSEWHERE].seconds += seconds - sum(spent.seconds for spent in self.roles.values())


@dataclass
class Size:
    """The runs with one number of hosts."""

    hosts: int
    runs: list[float] = field(default_factory=list)
    fastest: Times = field(default_factory=Times)

    @property
    def seconds(self) -> float:
        """Seconds of the fastest run: other work on the machine can only make runs slower."""
        return min(self.runs)

    def add(self, seconds: float, times: Times) -> None:
        """Take one more run."""
        times.end(seconds)
        self.runs.append(round(seconds, 1))
        if self.seconds == self.runs[-1]:
            self.fastest = times


@dataclass
class Seen:
    """All measurements."""

    sizes: list[Size] = field(default_factory=list)
    joins: dict[int, float] = field(default_factory=dict)
    """Hosts that joined at once → seconds."""

    def line(self) -> tuple[float, float] | None:
        """Seconds per additional host, and with none: a straight line fitted through two or more sizes."""
        if len(self.sizes) < 2:
            return None
        hosts, seconds = zip(*((size.hosts, size.seconds) for size in self.sizes), strict=True)
        fitted = statistics.linear_regression(hosts, seconds)
        return fitted.slope, fitted.intercept

    def figures(self) -> dict[str, float]:
        """The verdict's figures; those of roles and hosts are of the smallest size."""
        found = {f"converged_{size.hosts}_hosts_seconds": size.seconds for size in self.sizes}
        if line := self.line():
            found |= {"seconds_per_further_host": line[0], "seconds_without_hosts": line[1]}
        found |= {f"join_{count}_hosts_seconds": seconds for count, seconds in self.joins.items()}
        smallest = self.sizes[0].fastest
        for kind, spent in (("role", smallest.roles), ("host", smallest.hosts)):
            for name, each in spent.items():
                figure = f"{kind}_{name.replace('-', '_')}"
                found |= {f"{figure}_seconds": each.seconds, f"{figure}_tasks": each.tasks}
        return {name: round(value, 2) for name, value in found.items()}


def verdict(seen: Seen, measured_on: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of the JSON file."""
    figures = seen.figures()
    targets = judged(TARGETS, figures)
    sizes = [
        {
            "hosts": size.hosts,
            "runs": size.runs,
            "roles": {name: vars(spent) for name, spent in size.fastest.roles.items()},
            "tasks_of_hosts": {name: vars(spent) for name, spent in size.fastest.hosts.items()},
        }
        for size in seen.sizes
    ]
    ok = all(target["ok"] for target in targets)
    return {"ok": ok, "figures": figures, "targets": targets, "measured_on": measured_on, "sizes": sizes}


def tables(seen: Seen) -> Iterator[Table]:
    """Yield tables that show where the time goes."""
    roles = dict.fromkeys(role for size in seen.sizes for role in size.fastest.roles)
    by_role = {role: [size.fastest.roles.get(role) for size in seen.sizes] for role in roles}
    table = by_size(seen, "role: seconds of the run", by_role)
    table.add_section()
    table.add_row("all", "", *(f"{size.seconds:.1f}" for size in seen.sizes))
    yield table
    first = seen.sizes[0].fastest.hosts
    by_host = {host: [size.fastest.hosts.get(host) for size in seen.sizes] for host in first}
    further = [mean(spent for host, spent in size.fastest.hosts.items() if host not in first) for size in seen.sizes]
    if any(further):
        by_host["each further host (mean)"] = further
    yield by_size(seen, "host: seconds of its tasks", by_host)
    if seen.joins:
        joined = Table("new hosts at once", "seconds to join")
        for count, seconds in seen.joins.items():
            joined.add_row(str(count), f"{seconds:.1f}")
        yield joined


def by_size(seen: Seen, title: str, rows: Mapping[str, Sequence[Spent | None]]) -> Table:
    """Return a table of seconds with a column for each size, sorted by the largest size, slowest first."""
    table = Table(title, "tasks", *(f"{size.hosts} hosts" for size in seen.sizes))
    for column in table.columns[1:]:
        column.justify = "right"
    for name, spent in sorted(rows.items(), key=lambda row: -(row[1][-1] or Spent()).seconds):
        tasks = max(each.tasks for each in spent if each)
        table.add_row(name, str(tasks), *(f"{each.seconds:.1f}" if each else "" for each in spent))
    return table


def mean(these: Iterator[Spent]) -> Spent | None:
    """Return the mean time of several hosts, or nothing if there are none."""
    found = list(these)
    if not found:
        return None
    return Spent(statistics.mean(spent.seconds for spent in found), max(spent.tasks for spent in found))


def plot(seen: Seen, file: Path) -> None:
    """Draw the measurements, the fitted line, and the target."""
    wanted = {target.figure: target.at_most or 0.0 for target in TARGETS}
    base, further = wanted["converged_5_hosts_seconds"], wanted["seconds_per_further_host"]
    hosts = [size.hosts for size in seen.sizes]
    figure, panel = pyplot().subplots(figsize=(7, 4))
    ends = (5, max(*hosts, 10))
    allowed = [base + further * (end - 5) for end in ends]
    label = f"target: at most {base:g} s with 5 hosts, {further:g} s for each additional host"
    panel.plot(ends, allowed, linestyle="--", color="#8795a8", label=label)
    if line := seen.line():
        label = f"measured: {line[0]:.1f} s for each additional host"
        panel.plot(hosts, [line[1] + line[0] * count for count in hosts], color="#0b7a75", label=label)
    for size in seen.sizes:
        panel.scatter([size.hosts] * len(size.runs), size.runs, s=12, color="#0b7a75", alpha=0.4)
        place = {"xytext": (0, -14), "textcoords": "offset points", "ha": "center"}
        panel.annotate(f"{size.seconds:.0f} s", (size.hosts, size.seconds), **place)
    panel.scatter(hosts, [size.seconds for size in seen.sizes], color="#0b7a75", zorder=3)
    title = "site.yml on a converged lab, including the checks"
    for count, seconds in seen.joins.items():
        if limit := wanted.get(f"join_{count}_hosts_seconds"):
            title += f"\n{count} new hosts join at once in {seconds:.0f} s (target: at most {limit:g} s)"
    panel.set_title(title, loc="left", fontsize=10)
    panel.set_xlabel("hosts of the platform")
    panel.set_xticks(hosts)
    panel.set_ylabel("seconds")
    panel.set_ylim(bottom=0)
    panel.legend(loc="upper left", frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
    save(figure, file)
