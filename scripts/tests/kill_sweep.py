"""Kill site.yml in every task that changes something, and check that the next run recovers.

A first run on new hosts notes which tasks change something and how long each takes. Then, on new hosts again, the
play is killed (SIGKILL, no time to clean up) at a random moment within the first of these tasks, started anew and
killed within the next, and so on. What is left at the end must converge, and one more run must change nothing.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from rich.console import Console

from scripts import processes
from scripts.common import BUILD, ROOT, ProblemError, end, environment, machine_lock, write_json
from scripts.lab import hosts as lab_hosts
from scripts.run_playbook import CHANGES
from scripts.site import build_minio
from scripts.tests import scenarios

LOG = BUILD / "test-kills.log"
VERDICT = BUILD / "test-kills.json"
BANNER = re.compile(r"^(PLAY|TASK|RUNNING HANDLER) \[(.*)\] \*+$")
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


def lines(child: subprocess.Popen[str]) -> Iterator[str]:
    """Yield the lines that the play prints, and write them to the log."""
    with LOG.open("a") as log:
        for line in child.stdout or ():
            log.write(line)
            log.flush()
            yield line.rstrip()


def start() -> subprocess.Popen[str]:
    """Start the play in its own process group."""
    return subprocess.Popen(
        ["ansible-playbook", "-i", str(lab_hosts.INVENTORY), str(ROOT / "site.yml")],
        cwd=ROOT,
        env=environment({"ANSIBLE_NOCOLOR": "1"}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def converge() -> Run:
    """Run the play to its end; it must succeed."""
    child, run = start(), Run()
    for line in lines(child):
        run.take(line, time.monotonic())
    if child.wait():
        raise ProblemError(f"site.yml ended with {child.returncode} in the task `{run.tasks[-1]}`: see {LOG}")
    return run


def kill_in(wanted: set[str], seconds: dict[str, float], chance: random.Random) -> str | None:
    """Run the play until one of the `wanted` tasks starts, and kill it there; return that task, or None."""
    child, run = start(), Run()
    for line in lines(child):
        if run.take(line, time.monotonic()) and run.tasks[-1] in wanted:
            # Wait for a moment within the task. If the task is faster now, the kill comes on the way to the next one.
            time.sleep(chance.uniform(0, seconds.get(run.tasks[-1], 0)))
            ORPHANS.update(processes.tree(child.pid))
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            return run.tasks[-1]
    if child.wait():
        raise ProblemError(f"after a kill, site.yml ended with {child.returncode} in `{run.tasks[-1]}`: see {LOG}")
    return None


def end_orphans() -> None:
    """Kill what killed plays left on this machine; leave alone a process that reuses a PID."""
    for number in processes.left(ORPHANS):
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def sweep(wanted: Iterable[str], seconds: dict[str, float], chance: random.Random, console: Console) -> int:
    """Kill the play once in every wanted task that starts; return how many did."""
    left, killed = set(wanted), 0
    while task := kill_in(left, seconds, chance):
        left.remove(task)
        killed += 1
        console.print(f"killed in: {task} ({len(left)} left)", markup=False, highlight=False)
    return killed


def main() -> None:
    """Find the tasks that change something, then kill the play in each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seed",
        type=int,
        default=int(time.time()),
        help="use the seed of an earlier sweep to kill at the same moments",
    )
    seed = parser.parse_args().seed
    chance = random.Random(seed)  # noqa: S311 - moments, not secrets
    console = Console()
    console.print(f"seed {seed}; the log is {LOG.relative_to(ROOT)}", highlight=False)
    BUILD.mkdir(exist_ok=True)
    LOG.write_text("")
    with machine_lock("lab"):
        scenarios.prepare()
        try:
            with build_minio.in_background():
                lab_hosts.up()
                first = converge()
            console.print(f"{len(first.changing)} of {len(first.tasks)} tasks change something", highlight=False)
            lab_hosts.remove()
            lab_hosts.up()
            killed = sweep(first.changing, first.seconds, chance, console)
            again = converge()
        finally:
            end_orphans()
            lab_hosts.remove()
            lab_hosts.MADE_BY_TESTS.unlink(missing_ok=True)
    # Some tasks change something only if nothing interrupted the run before; the sweep must have met nearly all.
    ok = again.changes == 0 and killed >= 0.9 * len(first.changing)
    figures = {"tasks": len(first.tasks), "changing": len(first.changing), "kills": killed, "changes": again.changes}
    write_json(VERDICT, {"ok": ok, "figures": figures, "seed": seed})
    console.print(f"{'ok' if ok else 'FAILED'}: {figures}", markup=False, highlight=False)
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    try:
        main()
    except ProblemError as error:
        end(error)
