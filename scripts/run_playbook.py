"""Run a playbook with ansible-runner: progress on the terminal, the whole output in one log file."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import ansible_runner
from rich.console import Console

from scripts.common import CACHE, LOG, ROOT, ProblemError, environment, write_json
from scripts.progress import (
    Event,
    Expectation,
    LiveDisplay,
    PlainDisplay,
    State,
    against,
    failure_lines,
    recap_table,
)

RUNS = CACHE / "runs"
SHIPPED = ROOT / "scripts" / "expected.json"
INTERRUPTED = 130
LEFT_SECONDS = 24 * 3600
"""No play takes this long, so an older folder was left by a killed one."""
CHANGES = re.compile(r"^\S+ +: ok=\d+ +changed=(\d+)", re.MULTILINE)
"""How many tasks changed something, in a host's line of ansible-playbook's recap."""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Result:
    """How a playbook ended."""

    code: int
    state: State
    seconds: float

    @property
    def changed(self) -> int:
        """The number of tasks that changed something, on all hosts."""
        return sum(counts["changed"] for counts in self.state.recap.values())


def name_of(playbook: Path, limit: str | None) -> str:
    """Return the name under which a run's duration is kept."""
    return "-".join([*playbook.resolve().relative_to(ROOT).with_suffix("").parts, *([limit] if limit else [])])


def expectation(name: str) -> Expectation | None:
    """Return how long the last run took; before the first one, how long a first run took on two cores."""
    last = RUNS / f"{name}.json"
    if last.exists():
        return Expectation(**json.loads(last.read_text()))
    shipped = json.loads(SHIPPED.read_text()) if SHIPPED.exists() else {}
    return Expectation(**shipped[name]) if name in shipped else None


def remember(name: str, expected: Expectation) -> None:
    """Keep how long a run took, for the next one's progress."""
    write_json(RUNS / f"{name.replace('/', '_')}.json", asdict(expected))


class Interruption:
    """Whether the user wants to stop; ansible-runner polls it."""

    wanted = False

    def note(self, _signal: int, _frame: FrameType | None) -> None:
        """Handle the signal."""
        self.wanted = True

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Have the signals stop the playbook instead of this program."""
        kept = {number: signal.signal(number, self.note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)


def play(
    playbook: Path,
    inventories: Sequence[Path],
    *,
    console: Console,
    limit: str | None = None,
    extra: Sequence[str] = (),
    extra_env: Mapping[str, str] | None = None,
    watch: Callable[[Event], None] | None = None,
) -> Result:
    """Run the playbook, show its progress and print the recap. The caller decides what a failure means.

    `watch` is called with each of ansible-runner's events.
    """
    for path in (playbook, *inventories):
        if not path.exists():
            raise ProblemError(f"{path} does not exist")
    name = name_of(playbook, limit)
    expected, state, interruption = expectation(name), State(), Interruption()
    display = (LiveDisplay if console.is_terminal else PlainDisplay)(console, state, expected)
    command_line = [option for inventory in inventories for option in ("-i", str(inventory.resolve()))]
    command_line += [*(["--limit", limit] if limit else []), *extra]
    LOG.parent.mkdir(parents=True, exist_ok=True)
    RUNS.mkdir(parents=True, exist_ok=True)
    for killed in RUNS.glob("runner-*"):
        if time.time() - killed.stat().st_mtime > LEFT_SECONDS:
            shutil.rmtree(killed)
    private = tempfile.mkdtemp(dir=RUNS, prefix="runner-")
    try:
        with LOG.open("a") as log, interruption.watched(), display:
            log.write(f"$ ansible-playbook {shlex.join([*command_line, str(playbook)])}\n")

            def handle(event: Event) -> bool:
                if event.get("stdout"):
                    log.write(COLOURS.sub("", str(event["stdout"]).replace("\r\n", "\n")) + "\n")
                    log.flush()
                state.take(event)
                display.show(event)
                if watch:
                    watch(event)
                return False  # do not keep the event: nothing reads it again

            runner: Any = ansible_runner.run(
                private_data_dir=private,
                project_dir=str(ROOT),
                playbook=str(playbook.resolve()),
                cmdline=shlex.join(command_line),
                envvars={**environment(extra_env), "ANSIBLE_HOST_KEY_CHECKING": "True", "ANSIBLE_NOCOLOR": "1"},
                settings={"pexpect_timeout": 1},
                fact_cache_type="none",
                suppress_env_files=True,
                quiet=True,
                event_handler=handle,
                cancel_callback=lambda: interruption.wanted,
            )
    finally:
        shutil.rmtree(private, ignore_errors=True)
    result = Result(INTERRUPTED if interruption.wanted else int(runner.rc), state, state.elapsed)
    if result.code == 0:
        remember(name, Expectation(state.tasks, round(result.seconds, 1)))
    report(console, result, inventories, expected)
    return result


def report(console: Console, result: Result, inventories: Sequence[Path], expected: Expectation | None) -> None:
    """Print the recap and, after a failure, its cause as the last lines."""
    console.print(recap_table(result.state.recap))
    took = f"  {result.state.tasks} tasks, {result.changed} changes, {against(result.seconds, expected)}"
    console.print(took, markup=False, highlight=False)
    if result.code == 0:
        return
    shown = " -i ".join(str(path.resolve().relative_to(ROOT)) for path in inventories)
    lines = failure_lines(result.state.failures, shown)
    if result.code == INTERRUPTED:
        lines += [
            "",
            f"STOPPED on request, in the task: {result.state.task}",
            "  Run it again: it continues from the present state.",
        ]
    elif not lines:
        output = LOG.read_text(errors="replace").splitlines()[-15:]
        lines = ["", "FAILED before the first task:", *(f"  {line}" for line in output)]
    for line in [*lines, f"  The whole output is in {LOG.relative_to(ROOT)}"]:
        console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
