"""Report how long the steps, tasks and tests of `make test` took: a table, and build/test.json."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from scripts.common import BUILD, write_json
from scripts.progress import duration

VERDICT = BUILD / "test.json"
UNIT = BUILD / "unit.xml"
LINT = BUILD / "lint.json"
SHOWN = 10


class Span(NamedTuple):
    """Something that took time: a task of a playbook, or a test."""

    seconds: float
    where: str
    what: str


@dataclass
class Times:
    """The times of one scenario, from the moment at which each line of molecule's output came."""

    name: str
    steps: dict[str, float] = field(default_factory=dict)
    tasks: list[Span] = field(default_factory=list)
    _step: str = ""
    _task: str = ""
    _step_began: float = 0.0
    _task_began: float = 0.0

    def step(self, name: str, now: float) -> None:
        """Start a step at this second, and end the one before it."""
        self.task("", now)
        if self._step:
            self.steps[self._step] = self.steps.get(self._step, 0.0) + now - self._step_began
        self._step, self._step_began = name, now

    def task(self, name: str, now: float) -> None:
        """Start a task at this second, and end the one before it; an empty name starts none."""
        if self._task:
            self.tasks.append(Span(now - self._task_began, f"{self.name} {self._step}", self._task))
        self._task, self._task_began = name, now

    def end(self, now: float) -> None:
        """End the step and task at this second."""
        self.step("", now)

    @property
    def seconds(self) -> float:
        """The seconds of all steps."""
        return sum(self.steps.values())

    @property
    def junit(self) -> list[Path]:
        """The files to which pytest writes the duration of each test; a scenario may run pytest several times."""
        return [*BUILD.glob(f"test-{self.name}.xml"), *BUILD.glob(f"test-{self.name}-*.xml")]

    def forget(self) -> None:
        """Remove what an earlier run left."""
        for path in self.junit:
            path.unlink()


def tests(path: Path, where: str) -> list[Span]:
    """Return the tests in a file that pytest wrote, fixtures included."""
    cases = ElementTree.parse(path).getroot().iter("testcase")  # noqa: S314 - our own file
    return [Span(float(case.get("time", 0)), where, str(case.get("name"))) for case in cases]


def written_since(path: Path, moment: float) -> bool:
    """Return whether a file was written after this moment (seconds since the epoch)."""
    return path.exists() and path.stat().st_mtime >= moment


def slowest(spans: Iterable[Span]) -> list[Span]:
    """Return the slowest, slowest first."""
    return sorted(spans, reverse=True)[:SHOWN]


def report(console: Console, scenarios: Iterable[Times], began: float, *, ok: bool) -> None:
    """Show what took the time since `began` (seconds since the epoch), and write it to build/test.json."""
    scenarios = list(scenarios)
    parts: dict[str, Mapping[str, float]] = {times.name: times.steps for times in scenarios}
    done = [test for times in scenarios for path in times.junit for test in tests(path, times.name)]
    if written_since(LINT, began):
        parts = {"lint": json.loads(LINT.read_text()), **parts}
    if written_since(UNIT, began):
        unit = tests(UNIT, "unit")
        done += unit
        suite = next(ElementTree.parse(UNIT).getroot().iter("testsuite"))  # noqa: S314 - our own file
        parts = {"unit": {"pytest": float(suite.get("time", 0))}, **parts}
    total = time.time() - began
    tasks = slowest(task for times in scenarios for task in times.tasks)
    console.print(steps_table(parts))
    console.print(spans_table("The slowest tasks", tasks))
    console.print(spans_table("The slowest tests", slowest(done)))
    figures = {"seconds": round(total, 1), "tests": float(len(done))}
    for part, steps in parts.items():
        figures[f"{part}_seconds"] = round(sum(steps.values()), 1)
        figures |= {f"{part}_{step}_seconds": round(seconds, 1) for step, seconds in steps.items()}
    machine = f"{os.cpu_count()} cores, {platform.platform()}, {datetime.now(UTC).isoformat(timespec='seconds')}"
    lists = {
        name: [span._asdict() | {"seconds": round(span.seconds, 1)} for span in spans]
        for name, spans in (("slowest_tasks", tasks), ("slowest_tests", slowest(done)))
    }
    write_json(VERDICT, {"ok": ok, "figures": figures, **lists, "measured_on": machine})


def steps_table(parts: Mapping[str, Mapping[str, float]]) -> Table:
    """Return a table of the parts and their steps, longest first."""
    table = Table("part", "time", "steps", title="Where the minutes went", title_justify="left", box=SIMPLE_HEAD)
    for part, steps in sorted(parts.items(), key=lambda item: sum(item[1].values()), reverse=True):
        shown = ", ".join(f"{step} {duration(seconds)}" for step, seconds in steps.items())
        table.add_row(part, duration(sum(steps.values())), shown)
    return table


def spans_table(title: str, spans: Iterable[Span]) -> Table:
    """Return a table of tasks or tests."""
    table = Table("seconds", "where", "what", title=title, title_justify="left", box=SIMPLE_HEAD)
    for span in spans:
        table.add_row(f"{span.seconds:.1f}", span.where, span.what)
    return table
