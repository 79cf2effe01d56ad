"""Run a playbook, and kill it within a task (SIGKILL, no time to clean up): what the next run finds is then checked."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from scripts import processes
from scripts.common import ROOT, ProblemError, environment
from scripts.run_playbook import CHANGES

BANNER = re.compile(r"^(PLAY|TASK|RUNNING HANDLER) \[(.*)\] \*+$")
MOMENT_SECONDS = 1.0
"""Kills come up to this long after a task's start if nobody knows how long it takes."""
ORPHANS: dict[int, str] = {}
"""Processes of killed plays, each with its start time. Ansible gives them sessions of their own, so they survive, as
they would elsewhere."""


@dataclass
class Run:
    """One run of the play, read from its output."""

    tasks: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    changing: list[str] = field(default_factory=list)
    changes: int = 0
    _play: str = ""
    _seen: Counter[str] = field(default_factory=Counter)
    _began: float = 0.0

    def take(self, line: str, now: float) -> bool:
        """Take a line that was printed at `now` (seconds); return whether it starts a task."""
        if found := BANNER.match(line):
            if self.tasks:
                self.seconds.setdefault(self.tasks[-1], round(now - self._began, 2))
            self._began = now
            if found[1] == "PLAY":
                self._play = found[2]
                return False
            name = f"{self._play} > {found[2]}"
            self._seen[name] += 1
            self.tasks.append(name if self._seen[name] == 1 else f"{name} ({self._seen[name]})")
            return True
        if line.startswith("changed:") and self.tasks[-1] not in self.changing:
            self.changing.append(self.tasks[-1])
        elif found := CHANGES.match(line):
            self.changes += int(found[1])
        return False


@dataclass(frozen=True)
class Play:
    """A playbook to run and to kill. `log` gets all that the runs print."""

    playbook: Path
    inventory: Path
    log: Path
    options: Sequence[str] = ()

    def start(self) -> subprocess.Popen[str]:
        """Start the play in its own process group."""
        return subprocess.Popen(
            ["ansible-playbook", "-i", str(self.inventory), str(self.playbook), *self.options],
            cwd=ROOT,
            env=environment({"ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"}),  # molecule sets the latter
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def lines(self, child: subprocess.Popen[str]) -> Iterator[str]:
        """Yield the lines that the play prints, and write them to the log."""
        with self.log.open("a") as log:
            for line in child.stdout or ():
                log.write(line)
                log.flush()
                yield line.rstrip()

    def ended(self, child: subprocess.Popen[str], run: Run) -> None:
        """Raise ProblemError if the play failed."""
        if child.wait():
            task = run.tasks[-1] if run.tasks else "no task"
            raise ProblemError(f"{self.playbook.name} ended with {child.returncode} in `{task}`: see {self.log}")

    def converge(self) -> Run:
        """Run the play to its end; it must succeed."""
        child, run = self.start(), Run()
        for line in self.lines(child):
            run.take(line, time.monotonic())
        self.ended(child, run)
        return run

    def kill_in(self, wanted: Callable[[str], bool], moment: Callable[[str], float]) -> str | None:
        """Run the play until a `wanted` task starts, and kill it `moment` seconds later; return that task, or None."""
        child, run = self.start(), Run()
        for line in self.lines(child):
            if run.take(line, time.monotonic()) and wanted(run.tasks[-1]):
                # If the task is faster, the kill comes on the way to the next one.
                time.sleep(moment(run.tasks[-1]))
                ORPHANS.update(processes.tree(child.pid))
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
                return run.tasks[-1]
        self.ended(child, run)
        return None


def sweep(
    play: Play, wanted: Callable[[str], bool], chance: random.Random, seconds: Mapping[str, float] | None = None
) -> Iterator[str]:
    """Kill the play once in every `wanted` task that starts, and yield these tasks; the last run comes to its end.

    `seconds` is how long each task takes, so that a kill can come at any moment of it.
    """
    killed: set[str] = set()
    while task := play.kill_in(
        lambda name: name not in killed and wanted(name),
        lambda name: chance.uniform(0, MOMENT_SECONDS if seconds is None else seconds.get(name, 0)),
    ):
        killed.add(task)
        yield task


def end_orphans() -> None:
    """Kill what killed plays left on this machine; leave alone a process that reuses a PID."""
    for number in processes.left(ORPHANS):
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
