"""The state of a running playbook, from ansible-runner's events, and its display."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from scripts.common import ROOT

Event = Mapping[str, Any]
STARTS = {"playbook_on_task_start", "playbook_on_handler_task_start"}
ENDS = {
    "runner_on_ok": "ok",
    "runner_on_skipped": "skipped",
    "runner_on_failed": "failed",
    "runner_on_unreachable": "unreachable",
}


@dataclass(frozen=True)
class Failure:
    """A task that failed on a host."""

    host: str
    play: str
    task: str
    where: str
    reason: str
    unreachable: bool = False


@dataclass(frozen=True)
class Expectation:
    """How long the same playbook took last time."""

    tasks: int
    seconds: float


@dataclass
class State:
    """What has happened so far."""

    play: str = ""
    task: str = ""
    tasks: int = 0
    busy: set[str] = field(default_factory=set)
    changed: list[tuple[str, str]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    recap: dict[str, Counter[str]] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def take(self, event: Event) -> None:
        """Update the state with one event."""
        kind = event.get("event", "")
        data: Mapping[str, Any] = event.get("event_data") or {}
        host = str(data.get("host", ""))
        if kind == "playbook_on_play_start":
            self.play, self.task = str(data.get("play", "")), ""
        elif kind in STARTS:
            self.task = str(data.get("task", ""))
            self.tasks += 1
            self.busy.clear()
        elif kind == "runner_on_start":
            self.busy.add(host)
        elif kind in ENDS:
            self.busy.discard(host)
            self.ended(ENDS[kind], host, data)
        elif kind == "playbook_on_stats":
            self.settle(data)

    def ended(self, how: str, host: str, data: Mapping[str, Any]) -> None:
        """Count a task that ended on a host; keep it if it changed something or failed."""
        result: Mapping[str, Any] = data.get("res") or {}
        count = self.recap.setdefault(host, Counter())
        if how == "ok" and result.get("changed"):
            count["changed"] += 1
            self.changed.append((host, str(data.get("task", ""))))
        if how in ("failed", "unreachable") and not data.get("ignore_errors"):
            self.failures.append(
                Failure(
                    host,
                    self.play,
                    str(data.get("task", "")),
                    str(data.get("task_path", "")).removeprefix(f"{ROOT}/"),
                    reason(result),
                    how == "unreachable",
                )
            )
        count[how] += 1

    def settle(self, stats: Mapping[str, Any]) -> None:
        """Take Ansible's own totals, and drop failures that a rescue block handled."""
        names = {"ok": "ok", "changed": "changed", "failures": "failed", "dark": "unreachable", "skipped": "skipped"}
        hosts = {host for key in names for host in stats.get(key) or {}}
        self.recap = {
            host: Counter({name: int((stats.get(key) or {}).get(host, 0)) for key, name in names.items()})
            for host in sorted(hosts)
        }
        bad = {host for host, count in self.recap.items() if count["failed"] or count["unreachable"]}
        self.failures = [failure for failure in self.failures if failure.host in bad]


def reason(result: Mapping[str, Any]) -> str:
    """Return why a task failed: its message, the last lines of its program, and the same for each failed item."""
    if "censored" in result:
        return "its result is hidden because it holds secrets (no_log)"
    parts = [str(result[key]).strip() for key in ("msg",) if result.get(key)]
    for key in ("stderr", "stdout", "module_stderr", "module_stdout"):
        output = str(result.get(key) or "").strip()
        if output and output not in "\n".join(parts):
            parts.append(f"{key}:\n" + "\n".join(output.splitlines()[-20:]))
    for item in result.get("results") or []:
        if isinstance(item, Mapping) and (item.get("failed") or item.get("unreachable")):
            parts.append(f"item {item.get('_ansible_item_label', item.get('item', ''))}: {reason(item)}")
    return "\n".join(parts) or "no message; see the log"


def duration(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def against(elapsed: float, expected: Expectation | None) -> str:
    """Return the elapsed time beside the expected time."""
    if expected is None:
        return f"{duration(elapsed)} (first run, no expectation)"
    if elapsed > expected.seconds * 1.1 + 5:
        return f"{duration(elapsed)}, longer than the expected {duration(expected.seconds)}"
    return f"{duration(elapsed)} of about {duration(expected.seconds)}"


def count(tasks: int, expected: Expectation | None) -> str:
    """Return the task's number, and the total if it is known."""
    return f"{tasks}/{expected.tasks}" if expected and expected.tasks >= tasks else f"{tasks}"


class Display(Protocol):
    """Shows a state while it changes."""

    def __enter__(self) -> Display:
        """Begin."""

    def __exit__(self, *_: object) -> None:
        """End."""

    def show(self, event: Event) -> None:
        """Show the state, which has been updated with this event."""


class PlainDisplay:
    """For logs and pipes: one line for each play, task and change."""

    def __init__(self, console: Console, state: State, expected: Expectation | None) -> None:
        """Print updates of `state` to `console`."""
        self.console, self.state, self.expected = console, state, expected

    def __enter__(self) -> PlainDisplay:
        """Nothing to begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""

    def show(self, event: Event) -> None:
        """Print the event if it matters to a reader of the log."""
        state, kind = self.state, event.get("event")
        if kind == "playbook_on_play_start":
            self.line(f"PLAY {state.play} ({against(state.elapsed, self.expected)})")
        elif kind in STARTS:
            self.line(f"  {count(state.tasks, self.expected)} {state.task}")
        elif kind == "runner_on_ok" and (event["event_data"].get("res") or {}).get("changed"):
            self.line(f"    changed on {event['event_data'].get('host')}")
        elif kind in ("runner_on_failed", "runner_on_unreachable"):
            self.line(f"    {ENDS[str(kind)].upper()} on {event['event_data'].get('host')}")

    def line(self, text: str) -> None:
        """Print one line without markup or wrapping."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class LiveDisplay:
    """For terminals: a few lines that are redrawn."""

    def __init__(self, console: Console, state: State, expected: Expectation | None) -> None:
        """Draw `state` on `console`."""
        self.state, self.expected = state, expected
        self.live = Live(self, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveDisplay:
        """Begin to draw."""
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal clean."""
        self.live.stop()

    def show(self, _event: Event) -> None:
        """The live view draws itself four times a second."""

    def __rich_console__(self, _console: Console, _options: ConsoleOptions) -> RenderResult:
        """What is drawn."""
        state = self.state
        total = max(self.expected.tasks, state.tasks) if self.expected else None
        line = Table.grid(padding=(0, 1))
        line.add_row(
            ProgressBar(total=total, completed=state.tasks, width=24, pulse=total is None),
            Text(f"task {count(state.tasks, self.expected)}", no_wrap=True),
            Text(against(state.elapsed, self.expected), style="cyan", no_wrap=True),
        )
        rows: list[Table | Text] = [Text(f"  {state.play or 'starting'}", style="bold", no_wrap=True), line]
        hosts = f"  on {', '.join(sorted(state.busy))}" if state.busy else ""
        rows.append(Text(f"  {state.task}{hosts}", no_wrap=True))
        rows += [Text(f"    changed {host}: {task}", style="yellow", no_wrap=True) for host, task in state.changed[-4:]]
        rows += [
            Text(f"    failed {each.host}: {each.task}", style="red", no_wrap=True) for each in state.failures[-4:]
        ]
        yield Group(*rows)


def recap_table(recap: Mapping[str, Counter[str]]) -> Table:
    """Ansible's recap, one line per host."""
    table = Table(box=None, pad_edge=True, padding=(0, 2))
    columns = ("ok", "changed", "failed", "unreachable")
    for title in ("host", *columns):
        table.add_column(title, justify="left" if title == "host" else "right")
    for host, counts in recap.items():
        bad = counts["failed"] or counts["unreachable"]
        style = "red" if bad else "yellow" if counts["changed"] else "green"
        table.add_row(host, *(str(counts[name]) for name in columns), style=style)
    return table


def failure_lines(failures: Iterable[Failure], inventory: str) -> list[str]:
    """Return the final lines: which task failed on which host, why, and what to try."""
    lines: list[str] = []
    for failure in failures:
        lines += ["", f"FAILED on {failure.host}: {failure.task}", f"  in {failure.where or failure.play}"]
        lines += [f"  {line}" for line in failure.reason.splitlines()]
        if failure.unreachable:
            lines.append(
                f"  Try: ansible -i {inventory} {failure.host} -m ansible.builtin.ping -vvv; is the machine on, "
                "its address right, your key let in? (`make lab` starts a lab's stopped hosts)"
            )
    return lines
